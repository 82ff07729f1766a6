use std::{fs, os::unix::fs::PermissionsExt as _};

use aws_lc_rs::{
    encoding::{AsBigEndian as _, AsDer as _, EcPrivateKeyBin},
    rsa,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use fhir_sync::{
    demo::{Auth, RecordedRequest},
    export::auth::{AuthConfig, Smart},
    fhir::ResourceType,
    secret::Secret,
    sync::{Level, Mode, Outcome, TypeEnd},
};
use jsonwebtoken::{Algorithm, EncodingKey, jwk::Jwk};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{
    harness::{ANY_PORT, Ended, HOUR, OBSERVATION, PATIENT, Process, Setup, end_of, eventually, failure},
    members::{GROUP, set_members},
};

pub const CLIENT: &str = "hospital-warehouse";
const KEY_ID: &str = "key-1";
/// How the demo server's tokens begin.
const TOKEN: &str = "demo-token-";

/// A client's private key as it is stored, and its public key as the server knows it.
struct Registered {
    /// A PEM or a JWK.
    private: String,
    /// A part of it that must never be printed.
    secret: String,
    jwk: Jwk,
}

fn rs384() -> Registered {
    let pair = rsa::KeyPair::generate(rsa::KeySize::Rsa2048).unwrap();
    let secret = STANDARD.encode(pair.as_der().unwrap().as_ref());
    let private = format!("-----BEGIN PRIVATE KEY-----\n{secret}\n-----END PRIVATE KEY-----\n");
    let jwk = public(&EncodingKey::from_rsa_pem(private.as_bytes()).unwrap(), Algorithm::RS384);
    Registered { private, secret: secret[100..140].to_owned(), jwk }
}

fn es384() -> Registered {
    let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let number: EcPrivateKeyBin = pair.private_key().as_be_bytes().unwrap();
    let (x, y) = pair.public_key().as_ref()[1..].split_at(48);
    let [x, y, secret] = [x, y, number.as_ref()].map(|number| URL_SAFE_NO_PAD.encode(number));
    let private = json!({"kty": "EC", "crv": "P-384", "kid": KEY_ID, "x": x, "y": y, "d": secret}).to_string();
    let pkcs8 = pair.to_pkcs8v1().unwrap();
    Registered { private, secret, jwk: public(&EncodingKey::from_ec_der(pkcs8.as_ref()), Algorithm::ES384) }
}

fn public(key: &EncodingKey, algorithm: Algorithm) -> Jwk {
    let mut jwk = Jwk::from_encoding_key(key, algorithm).unwrap();
    jwk.common.key_id = Some(KEY_ID.to_owned());
    jwk
}

impl Registered {
    fn auth(&self) -> Auth {
        Auth::new(CLIENT, self.jwk.clone())
    }
}

/// A setup whose server requires tokens and whose client can get them.
async fn guarded() -> Setup {
    let mut setup = Setup::new().await;
    let registered = es384();
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    setup.client.auth = Some(Smart::new(CLIENT, Secret::given(registered.private)).into());
    setup
}

/// The same for a process: with the path of its key.
pub async fn guarded_with_key_file() -> (Setup, String) {
    let (setup, registered) = (Setup::new().await, es384());
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    let key_file = key_file(&setup, &registered);
    (setup, key_file)
}

fn smart(setup: &mut Setup) -> &mut Smart {
    let Some(AuthConfig::Smart(smart)) = &mut setup.client.auth else { panic!("not SMART") };
    smart
}

/// Writes the private key to a file that only its owner can read.
fn key_file(setup: &Setup, registered: &Registered) -> String {
    let path = setup.folder.path().join("key");
    fs::write(&path, &registered.private).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

fn assert_silent(ended: &Ended, registered: &Registered) {
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    for secret in [TOKEN, &registered.secret, "client_assertion", "eyJ"] {
        assert!(!ended.output().contains(secret), "{secret:?} was printed:\n{}", ended.output());
    }
}

fn at_origin(setup: &Setup, origin: &url::Url) -> Vec<RecordedRequest> {
    let origin = origin.as_str().trim_end_matches('/');
    setup.server.requests().into_iter().filter(|request| request.origin == origin).collect()
}

/// (rules 118 and 129)
#[tokio::test]
async fn with_a_key_of_either_kind_a_sync_completes_and_prints_neither_key_nor_token() {
    for registered in [rs384(), es384()] {
        let setup = Setup::new().await;
        setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
        let key_file = key_file(&setup, &registered);
        let settings = [
            ("FHIR_SYNC__SERVER__CLIENT_ID", CLIENT),
            ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", key_file.as_str()),
            ("FHIR_SYNC__SERVER__KEY_ID", KEY_ID),
        ];
        let ended = setup.process(&settings).await;
        assert_silent(&ended, &registered);
        assert!(ended.stderr.contains("DEBUG"), "{}", ended.stderr);
        setup.assert_same_as_server().await;
    }
}

/// `fhir-sync sync` with the flags of the script that it replaces.
async fn drop_in(setup: &Setup, more: &[&str], environment: &[(&str, &str)]) -> Ended {
    let (url, lake, state_file) = (setup.server.url(), setup.lake(), setup.state_file());
    let (lake, state_file) = (lake.to_str().unwrap(), state_file.to_str().unwrap());
    let mut arguments = vec!["sync", "--fhir-endpoint", url.as_str(), "--delta-path", lake, "--state-file", state_file];
    arguments.extend(["--resource-types", "Patient", "Observation"]);
    arguments.extend(more);
    setup.server.scenario(|scenario| scenario.polls_before_done = 0);
    Process::start(&arguments, environment).end().await
}

#[tokio::test]
async fn the_drop_in_flags_take_client_id_and_key_from_the_environment() {
    let (setup, registered) = (Setup::new().await, es384());
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    let environment = [("FHIR_CLIENT_ID", CLIENT), ("FHIR_PRIVATE_KEY", registered.private.as_str())];
    assert_silent(&drop_in(&setup, &[], &environment).await, &registered);
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn the_drop_in_flags_take_client_id_and_key_file_from_the_command_line() {
    let (setup, registered) = (Setup::new().await, es384());
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    let key_file = key_file(&setup, &registered);
    let ended = drop_in(&setup, &["--auth-client-id", CLIENT, "--auth-private-key", &key_file], &[]).await;
    assert_silent(&ended, &registered);
    setup.assert_same_as_server().await;
}

/// (rule 2)
#[tokio::test]
async fn the_drop_in_flags_need_no_key_where_the_server_is_open() {
    let setup = Setup::new().await;
    let ended = drop_in(&setup, &["--group-id", "all", "--full-refresh"], &[]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
    assert_eq!(setup.server.jobs()[0].path, "/fhir/Group/all/$export");
    setup.assert_same_as_server().await;
}

#[tokio::test]
async fn a_client_id_in_the_environment_does_not_disturb_a_configuration_file() {
    let setup = Setup::new().await;
    let ended = setup.process(&[("FHIR_CLIENT_ID", CLIENT), ("FHIR_PRIVATE_KEY", "of the script before us")]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.output());
}

#[tokio::test]
async fn a_private_key_without_a_client_id_is_an_error_that_says_what_to_do() {
    let setup = Setup::new().await;
    let ended = drop_in(&setup, &["--auth-private-key", "/nowhere/key"], &[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    let expected = "--auth-client-id or FHIR_CLIENT_ID: is missing; the private key needs it";
    assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    assert!(setup.server.requests().is_empty());
}

/// (rule 129)
#[tokio::test]
async fn a_key_file_that_other_users_can_read_is_refused_with_the_command_that_fixes_it() {
    let (setup, registered) = (Setup::new().await, es384());
    let key_file = key_file(&setup, &registered);
    fs::set_permissions(&key_file, fs::Permissions::from_mode(0o644)).unwrap();
    let ended = drop_in(&setup, &["--auth-client-id", CLIENT, "--auth-private-key", &key_file], &[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    assert!(ended.stderr.contains(&format!("chmod 600 {key_file}")), "{}", ended.stderr);
    assert!(setup.server.requests().is_empty());
}

/// (rule 89)
#[tokio::test]
async fn a_token_that_expires_during_the_downloads_is_renewed() {
    let setup = guarded().await;
    setup.server.scenario(|scenario| {
        scenario.lines_per_file = 1;
        // One more than the parallel downloads: a download that is refused once succeeds with the next token.
        scenario.auth.as_mut().unwrap().expire_tokens_after_file_requests = Some(5);
    });
    setup.complete().await;
    setup.assert_same_as_server().await;
    let requests = setup.server.requests();
    assert!(requests.iter().any(|request| request.path.contains("/bulkfiles/") && request.status == 401));
    assert!(requests.iter().filter(|request| request.path == "/auth/token").count() >= 2);
}

/// (rule 92)
#[tokio::test]
async fn an_origin_that_requires_a_token_and_may_not_receive_it_is_named() {
    let mut setup = guarded().await;
    let origin = setup.server.open_file_origin(ANY_PORT).await.unwrap();
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Failed);
    for resource_type in [PATIENT, OBSERVATION] {
        let reason = failure(&report, resource_type);
        let place = origin.as_str().trim_end_matches('/');
        assert!(reason.contains(place) && reason.contains("server.token_origins"), "{reason}");
        assert!(setup.lines(resource_type).await.is_empty());
    }
    assert!(at_origin(&setup, &origin).iter().all(|request| request.authorization.is_none()), "and gets none");

    setup.client.token_origins.push(origin);
    setup.complete().await;
    assert_eq!(setup.server.jobs().len(), 1, "the next sync goes on with the same export");
    setup.assert_same_as_server().await;
}

/// (rule 90)
#[tokio::test]
async fn files_on_another_origin_that_need_no_token_are_requested_without_one() {
    let mut setup = guarded().await;
    let origin = setup.server.open_file_origin(ANY_PORT).await.unwrap();
    setup.server.scenario(|scenario| scenario.requires_access_token = Some(false));
    setup.complete().await;
    setup.assert_same_as_server().await;
    let requests = at_origin(&setup, &origin);
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| request.status == 200 && request.authorization.is_none()), "{requests:#?}");
}

/// (rule 92)
#[tokio::test]
async fn an_origin_in_token_origins_receives_the_token() {
    let mut setup = guarded().await;
    let origin = setup.server.open_file_origin(ANY_PORT).await.unwrap();
    setup.client.token_origins.push(origin.clone());
    setup.complete().await;
    setup.assert_same_as_server().await;
    let requests = at_origin(&setup, &origin);
    assert_eq!(requests.len(), 2);
    let has_token =
        |request: &RecordedRequest| request.authorization.as_ref().is_some_and(|value| value.contains(TOKEN));
    assert!(requests.iter().all(|request| request.status == 200 && has_token(request)), "{requests:#?}");
}

/// (rule 128)
#[tokio::test]
async fn a_client_id_that_the_server_does_not_know_is_reported_with_what_to_check() {
    let setup = guarded().await;
    setup.server.scenario(|scenario| scenario.auth.as_mut().unwrap().client_id = "another".to_owned());
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Failed);
    let remark = report.remarks.join("; ");
    assert!(remark.contains("refused a token: invalid_client; check the client id"), "{remark}");
    let types: Vec<ResourceType> = report.types.keys().copied().collect();
    assert_eq!((types, setup.server.jobs().len()), (vec![OBSERVATION, PATIENT], 0));
}

#[tokio::test]
async fn the_settings_of_the_environment_count_beside_a_key_in_the_environment() {
    let (setup, registered) = (Setup::new().await, rs384());
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    let token_url = setup.server.url().join("/auth/token").unwrap();
    // As a secret store hands a PEM on. Without the key id the server would refuse it.
    let key = registered.private.replace('\n', "\\n");
    let environment = [
        ("FHIR_PRIVATE_KEY", key.as_str()),
        ("FHIR_SYNC__SERVER__CLIENT_ID", CLIENT),
        ("FHIR_SYNC__SERVER__KEY_ID", KEY_ID),
        ("FHIR_SYNC__SERVER__TOKEN_URL", token_url.as_str()),
        ("FHIR_SYNC__SERVER__SCOPES", "system/Patient.rs,system/Observation.rs"),
    ];
    assert_silent(&drop_in(&setup, &[], &environment).await, &registered);
    setup.assert_same_as_server().await;
    let requests = setup.server.requests();
    assert!(!requests.iter().any(|request| request.path.contains(".well-known")), "both settings were used");
}

/// (rule 129)
#[tokio::test]
async fn a_key_given_in_the_place_of_its_file_is_not_printed() {
    let (setup, registered) = (Setup::new().await, rs384());
    let ended = drop_in(&setup, &["--auth-client-id", CLIENT, "--auth-private-key", &registered.private], &[]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    assert!(ended.stderr.contains("is the secret itself"), "{}", ended.stderr);
    assert!(!ended.output().contains(&registered.secret), "{}", ended.output());
    let url = "https://admin:s3cret@ehr example.org/fhir?key=s3cret";
    let ended = setup.process(&[("FHIR_SYNC__SERVER__URL", url)]).await;
    assert_eq!(ended.code, Some(78), "{}", ended.output());
    assert!(!ended.output().contains("s3cret"), "{}", ended.output());
}

#[tokio::test]
async fn a_proxy_of_the_environment_receives_nothing() {
    let (setup, registered) = (Setup::new().await, es384());
    setup.server.scenario(|scenario| scenario.auth = Some(registered.auth()));
    let proxy = tokio::net::TcpListener::bind(ANY_PORT).await.unwrap();
    let address = format!("http://{}", proxy.local_addr().unwrap());
    let key_file = key_file(&setup, &registered);
    for setting in ["none", "environment"] {
        let settings = [
            ("http_proxy", address.as_str()),
            ("HTTP_PROXY", address.as_str()),
            ("ALL_PROXY", address.as_str()),
            ("FHIR_SYNC__SERVER__PROXY", setting),
            ("FHIR_SYNC__SERVER__CLIENT_ID", CLIENT),
            ("FHIR_SYNC__SERVER__PRIVATE_KEY_FILE", key_file.as_str()),
        ];
        assert_silent(&setup.process(&settings).await, &registered);
    }
    let accepted = tokio::time::timeout(std::time::Duration::from_millis(50), proxy.accept()).await;
    assert!(accepted.is_err(), "the server is at a loopback address");
}

/// (rules 21, 126 and 130, Q-64)
#[tokio::test]
async fn a_type_that_the_granted_scopes_do_not_cover_is_denied_and_the_scope_named() {
    let mut setup = guarded().await;
    smart(&mut setup).endpoint.scopes = vec!["system/Observation.rs".to_owned()];
    setup.server.scenario(|scenario| _ = scenario.left_out.insert(PATIENT));
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial);
    let denied = TypeEnd::Denied { missing_scope: "system/Patient.rs".to_owned() };
    assert_eq!(end_of(&report, PATIENT), &denied);
    assert!(report.remarks.iter().any(|remark| remark.contains("Patient is denied")), "{:?}", report.remarks);
    smart(&mut setup).endpoint.scopes = vec!["system/*.rs".to_owned()];
    setup.server.scenario(|scenario| scenario.left_out.clear());
    setup.complete().await;
    assert_eq!(setup.server.jobs().last().unwrap().since, None);
    setup.assert_same_as_server().await;
}

/// (rule 126, Q-64)
#[tokio::test]
async fn a_type_that_the_scopes_no_longer_cover_is_denied_in_an_increment_and_what_changed_comes_later() {
    let setup = guarded().await;
    setup.complete().await;
    let before = setup.watermark(PATIENT).await;
    setup.later(|world| _ = world.put(PATIENT, "p9", json!({})));
    let narrowed = |scenario: &mut fhir_sync::demo::Scenario, is_narrow: bool| {
        scenario.left_out = is_narrow.then_some(PATIENT).into_iter().collect();
        scenario.auth.as_mut().unwrap().granted_scope = is_narrow.then(|| "system/Observation.rs".to_owned());
    };
    setup.server.scenario(|scenario| narrowed(scenario, true));
    let report = setup.sync().await;
    assert_eq!(report.outcome, Outcome::Partial, "{report:#?}");
    assert!(matches!(end_of(&report, PATIENT), TypeEnd::Denied { .. }), "{report:#?}");
    assert_eq!(setup.watermark(PATIENT).await, before);
    setup.server.scenario(|scenario| narrowed(scenario, false));
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// The server leaves out what the token of the kick-off does not cover. (rules 21 and 126, Q-64)
#[tokio::test]
async fn a_type_that_the_scopes_did_not_cover_when_an_export_was_asked_for_is_denied_although_they_do_again() {
    let setup = guarded().await;
    setup.complete().await;
    let before = setup.watermark(PATIENT).await;
    setup.later(|world| _ = world.put(PATIENT, "p9", json!({})));
    setup.server.scenario(|scenario| {
        scenario.hold = true;
        scenario.left_out.insert(PATIENT);
        scenario.auth.as_mut().unwrap().granted_scope = Some("system/Observation.rs".to_owned());
    });
    let stop = CancellationToken::new();
    let syncer = setup.open().await.unwrap();
    let polled = async || setup.server.jobs().get(1).filter(|job| job.polls > 0).map(|_| stop.cancel());
    let (report, ()) = tokio::join!(syncer.run(&setup.export, Mode::Incremental, &stop), eventually("a poll", polled));
    assert_eq!(report.outcome, Outcome::Stopped);
    syncer.close().await;
    drop(syncer);
    setup.server.scenario(|scenario| {
        scenario.hold = false;
        scenario.left_out.clear();
        scenario.auth.as_mut().unwrap().granted_scope = None;
    });
    let report = setup.sync().await;
    assert_eq!(end_of(&report, PATIENT), &TypeEnd::Denied { missing_scope: "system/Patient.rs".to_owned() });
    assert_eq!(setup.watermark(PATIENT).await, before);
    assert_eq!(setup.server.jobs().len(), 2, "the same export");
    setup.complete().await;
    setup.assert_same_as_server().await;
}

/// What is older of them arrives when the scopes cover the type again (rules 21 and 107).
#[tokio::test]
async fn joiners_are_not_recorded_while_the_scopes_do_not_cover_a_type() {
    let mut setup = guarded().await;
    setup.export.level = Level::Group(GROUP.to_owned());
    setup.export.reconciled.clear();
    setup.later(|world| {
        for (id, of) in [("o1", "Patient/p1"), ("o2", "Patient/p2")] {
            world.put(OBSERVATION, id, json!({"status": "final", "subject": {"reference": of}}));
        }
        set_members(world, &["p1"]);
        world.advance(24 * HOUR);
    });
    setup.complete().await;
    setup.later(|world| set_members(world, &["p1", "p2"]));
    let narrowed = |scenario: &mut fhir_sync::demo::Scenario, is_narrow: bool| {
        let granted = "system/Patient.rs system/Group.rs";
        scenario.left_out = is_narrow.then_some(OBSERVATION).into_iter().collect();
        scenario.auth.as_mut().unwrap().granted_scope = is_narrow.then(|| granted.to_owned());
    };
    setup.server.scenario(|scenario| narrowed(scenario, true));
    let report = setup.sync().await;
    assert_eq!((report.outcome, setup.lines(PATIENT).await.len()), (Outcome::Partial, 2), "{report:#?}");
    let is_named = |remark: &String| remark.contains("who joined: Observation: the scope system/Observation.rs");
    assert!(report.remarks.iter().any(is_named), "{report:#?}");
    setup.server.scenario(|scenario| narrowed(scenario, false));
    setup.complete().await;
    assert_eq!(setup.lines(OBSERVATION).await.len(), 2);
}
