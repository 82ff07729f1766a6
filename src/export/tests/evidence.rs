//! Evidence beside an export: the server's own count of a type, and the scopes that were granted.

use auth::{Granted, Smart};
use keys::ec_key;

use super::*;

#[tokio::test]
async fn the_server_counts_a_type_and_whatever_is_not_a_count_is_none() {
    for (answer, expected) in [
        (Answer::json(r#"{"resourceType":"Bundle","type":"searchset","total":643}"#), Some(643)),
        (Answer::json(r#"{"resourceType":"Bundle","total":0,"entry":[]}"#), Some(0)),
        (Answer::json(r#"{"resourceType":"Bundle","type":"searchset"}"#), None),
        (Answer::json(r#"{"resourceType":"Bundle","total":-1}"#), None),
        (Answer::json(r#"{"total":3}"#), None),
        (Answer::json("<html>"), None),
        (Answer::outcome(403, "forbidden"), None),
        (Answer::status(404), None),
        (Answer::status(429).header("retry-after", "3600"), None),
        (Answer::status(500), None),
    ] {
        let mut answer = Some(answer);
        let server = Server::start(move |_| answer.take().unwrap()).await;
        assert_eq!(client(&server).count("Patient".parse().unwrap()).await.unwrap(), expected);
        assert_eq!(server.asked().len(), 1, "asked once");
        assert_eq!(server.asked()[0].path, "/fhir/Patient?_summary=count");
    }
    let server = Server::start(|_| Answer::status(200)).await;
    let client = client(&server);
    drop(server);
    assert!(matches!(client.count("Patient".parse().unwrap()).await, Err(Error::Unreachable { .. })));
}

/// (rule 126, Q-64)
#[tokio::test]
async fn the_scopes_of_the_token_are_known_and_a_missing_one_is_named() {
    let no = |scope: &str| Granted::No { missing: scope.to_owned() };
    for (scope, patient, observation) in [
        (r#","scope":"system/Patient.rs""#, Granted::Yes, no("system/Observation.rs")),
        (r#","scope":["system/Patient.read"]"#, Granted::Yes, no("system/Observation.read")),
        (r#","scope":"system/*.rs""#, Granted::Yes, Granted::Yes),
        (r#","scope":"fhir""#, Granted::Unknown, Granted::Unknown),
        // Without a scope those requested are granted: all types.
        ("", Granted::Yes, Granted::Yes),
        (r#","scope":null"#, Granted::Yes, Granted::Yes),
    ] {
        let server = Server::start(move |asked| match asked.path.as_str() {
            "/fhir/.well-known/smart-configuration" => Answer::json(r#"{"token_endpoint":"/token"}"#),
            _ => Answer::json(&format!(r#"{{"access_token":"t1"{scope}}}"#)),
        })
        .await;
        let key = crate::secret::Secret::given(ec_key().jwk.to_string());
        let client = Client::new(Config { auth: Some(Smart::new("me", key).into()), ..config(&server) }).unwrap();
        assert_eq!(client.granted("Patient".parse().unwrap()).await, patient, "{scope}");
        assert_eq!(client.granted("Observation".parse().unwrap()).await, observation, "{scope}");
        assert_eq!(server.asked().len(), 2);
    }
    let open = Server::start(|_| Answer::status(500)).await;
    assert_eq!(client(&open).granted("Patient".parse().unwrap()).await, Granted::Yes);
    assert!(open.asked().is_empty());
}
