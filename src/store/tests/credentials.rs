//! Credentials that change while requests are sent.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use futures::TryStreamExt as _;
use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart, aws::AwsCredential, path::Path as StorePath};

use super::{
    super::{
        failure::{Cause, Failure},
        renewing::{Made, Renewing, exposed},
        service::CREDENTIALS,
    },
    *,
};
use crate::secret::Place;

/// A file that only its owner can read, replaced as a whole.
fn write(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(new, path).unwrap();
}

fn with_token_in(file: &Path, server: &Server) -> Arc<dyn ObjectStore> {
    let mut options = server.options(&[("aws_access_key_id", "AKIAEXAMPLE"), ("aws_secret_access_key", "k")]);
    let token = Service::S3.find("aws_session_token").unwrap();
    options.keep(token, Secret::at(Place::File(file.to_path_buf())));
    connect(&URL.parse().unwrap(), &options).unwrap()
}

fn token(seen: &Seen) -> &str {
    seen.header("x-amz-security-token")
}

#[tokio::test]
async fn a_session_token_whose_file_was_replaced_is_in_the_next_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    write(&file, "first\n");
    let server = Server::start().await;
    let store = with_token_in(&file, &server);
    store.put(&StorePath::from("a"), "1".into()).await.unwrap();
    write(&file, "second\n");
    store.put(&StorePath::from("b"), "2".into()).await.unwrap();
    assert_eq!(server.seen().iter().map(token).collect::<Vec<_>>(), ["first", "second"]);
}

/// The server expires the first token, and refuses it, at the request with this number.
async fn expiring(file: &Path, at: usize) -> Server {
    write(file, "first");
    let file = file.to_path_buf();
    Server::failing(move |seen, before| {
        if before == at {
            write(&file, "second");
        }
        (before >= at && token(seen) == "first").then(|| refusal(400, "ExpiredToken"))
    })
    .await
}

#[tokio::test]
async fn a_request_that_is_refused_for_its_token_is_sent_once_more_with_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let server = expiring(&file, 1).await;
    let store = with_token_in(&file, &server);
    let path = StorePath::from("a");
    store.put(&path, "1".into()).await.unwrap();
    assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), "1");
    assert_eq!(server.seen().iter().map(token).collect::<Vec<_>>(), ["first", "first", "second"]);
}

#[tokio::test]
async fn a_refused_token_that_nobody_has_replaced_is_an_error_after_one_request() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    write(&file, "first");
    let server = Server::failing(|_, _| Some(refusal(400, "ExpiredToken"))).await;
    let error = with_token_in(&file, &server).get(&StorePath::from("a")).await.unwrap_err();
    assert_eq!(Failure::within(&error).unwrap().cause, Cause::Expired);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_part_that_is_refused_for_its_token_is_sent_again_under_its_number() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    // 0 begins the upload, 1 is the first part, 2 the second.
    let server = expiring(&file, 2).await;
    let store = with_token_in(&file, &server);
    let path = StorePath::from("a");
    let mut upload = store.put_multipart(&path).await.unwrap();
    for text in ["one,", "two,", "three"] {
        upload.put_part(PutPayload::from(text)).await.unwrap();
    }
    upload.complete().await.unwrap();
    assert_eq!(server.object("a").unwrap(), "one,two,three");
    assert_eq!(server.count("UploadPart"), 4);
}

#[tokio::test]
async fn a_listing_goes_on_where_its_token_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    // Five files, then two pages of the list.
    let server = expiring(&file, 6).await;
    let store = with_token_in(&file, &server);
    for name in ["a", "b", "c", "d", "e"] {
        store.put(&StorePath::from(name), "1".into()).await.unwrap();
    }
    let files: Vec<_> = store.list(None).map_ok(|file| file.location.to_string()).try_collect().await.unwrap();
    assert_eq!(files, ["a", "b", "c", "d", "e"]);
    assert!(server.seen().iter().any(|seen| token(seen) == "second"));
}

#[tokio::test]
async fn a_deletion_that_is_refused_for_its_token_is_sent_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    let server = expiring(&file, 1).await;
    let store = with_token_in(&file, &server);
    let path = StorePath::from("a");
    store.put(&path, "1".into()).await.unwrap();
    store.delete(&path).await.unwrap();
    assert_eq!(server.object("a"), None);
}

#[tokio::test]
async fn a_command_prints_key_and_token_together_and_runs_again_when_they_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let script = format!(
        "echo x >> {0}; n=$(wc -l < {0}); echo \"{{\\\"Version\\\": 1, \\\"AccessKeyId\\\": \\\"AKIA$n\\\", \
         \\\"SecretAccessKey\\\": \\\"k\\\", \\\"SessionToken\\\": \\\"token$n\\\"}}\"",
        runs.display()
    );
    let command = vec!["sh".to_owned(), "-c".to_owned(), script];
    let server = Server::failing(|seen, _| (token(seen) == "token1").then(|| refusal(403, "InvalidAccessKeyId"))).await;
    let mut options = server.options(&[]);
    options.keep(Service::S3.find(CREDENTIALS).unwrap(), Secret::at(Place::Command(command)));
    let store = connect(&URL.parse().unwrap(), &options).unwrap();
    for name in ["a", "b"] {
        store.put(&StorePath::from(name), "1".into()).await.unwrap();
    }
    assert_eq!(server.seen().iter().map(token).collect::<Vec<_>>(), ["token1", "token2", "token2"]);
    assert!(server.seen()[2].header("authorization").contains("Credential=AKIA2/"));
    assert_eq!(fs::read_to_string(runs).unwrap().lines().count(), 2);
}

/// A constant credential whose key id is the text of the secret `of`.
fn renewing(of: Secret, lifetime: Duration) -> Renewing<AwsCredential> {
    let make = move |texts: &super::super::renewing::Texts| {
        let key_id = exposed(texts, CREDENTIALS).unwrap().to_owned();
        let credential = AwsCredential { key_id, secret_key: String::new(), token: None };
        let provider = Arc::new(object_store::StaticCredentialProvider::new(credential));
        Ok(Made { provider, fetches: false, lifetime: Some(lifetime) })
    };
    Renewing::new([(CREDENTIALS, of)].into(), "nobody", Box::new(make))
}

#[tokio::test(start_paused = true)]
async fn credentials_that_end_are_made_again_five_minutes_before() {
    use object_store::CredentialProvider as _;
    let folder = tempfile::tempdir().unwrap();
    let runs = folder.path().join("runs");
    let script = format!("echo x >> {0}; wc -l < {0}", runs.display());
    let command = Secret::at(Place::Command(vec!["sh".to_owned(), "-c".to_owned(), script]));
    let credentials = renewing(command, Duration::from_hours(1));
    let mut used = Vec::new();
    for minutes in [0, 54, 1] {
        tokio::time::advance(Duration::from_mins(minutes)).await;
        used.push(credentials.get_credential().await.unwrap().key_id.trim().to_owned());
    }
    assert_eq!(used, ["1", "1", "2"]);
}

#[tokio::test]
async fn of_several_requests_that_are_refused_together_the_first_renews_for_all() {
    use object_store::CredentialProvider as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    write(&file, "first");
    let credentials = renewing(Secret::at(Place::File(file.clone())), Duration::from_hours(1));
    credentials.get_credential().await.unwrap();
    let refused = credentials.number();
    assert!(!credentials.renew(refused).await, "nothing has changed");
    write(&file, "second");
    assert!(credentials.renew(refused).await);
    assert!(credentials.renew(refused).await, "the other request has the same number");
    assert_eq!(credentials.number(), refused + 1);
}

#[tokio::test]
async fn a_request_that_was_signed_before_another_one_saw_the_change_is_sent_once_more() {
    use object_store::CredentialProvider as _;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("key");
    write(&file, "first");
    let credentials = renewing(Secret::at(Place::File(file.clone())), Duration::from_hours(1));
    credentials.get_credential().await.unwrap();
    let signed_with = credentials.number();
    write(&file, "second");
    assert_eq!(credentials.get_credential().await.unwrap().key_id, "second");
    assert!(credentials.renew(signed_with).await);
}

/// Azure and Google, against a server that only notes the request.
async fn noted(service: Service, url: &str, own: &[(&str, &str)]) -> Seen {
    let server = Server::failing(|_, _| Some((StatusCode::OK, [("etag", "1")], "").into_response())).await;
    let endpoint = match service {
        Service::Azure => "azure_storage_endpoint",
        _ => "google_base_url",
    };
    let reached = [(endpoint, server.endpoint.as_str()), ("allow_http", "true")];
    let store = connect(&url.parse().unwrap(), &options(service, reached.iter().chain(own))).unwrap();
    store.put(&StorePath::from("tables/a"), "1".into()).await.unwrap();
    server.seen()[0].clone()
}

#[tokio::test]
async fn azure_gets_its_key_its_signature_or_its_token() {
    let url = "abfss://lake@account.dfs.core.windows.net/tables/";
    let seen = noted(Service::Azure, url, &[("azure_storage_account_key", "a2V5")]).await;
    assert!(seen.header("authorization").starts_with("SharedKey account:"), "{seen:?}");
    assert_eq!(seen.path, "/lake/tables/a");
    let seen = noted(Service::Azure, url, &[("azure_storage_sas_key", "?sv=2024&sig=a%2Bb%3D")]).await;
    assert!(seen.query.contains("sig=a%2Bb%3D") && seen.header("authorization").is_empty(), "{seen:?}");
    let own = [("azure_storage_token", "t0ken\n"), ("azure_storage_account_name", "account")];
    let seen = noted(Service::Azure, "az://lake/tables/", &own).await;
    assert_eq!(seen.header("authorization"), "Bearer t0ken");
}

#[tokio::test]
async fn google_gets_its_token() {
    let seen = noted(Service::Gcs, "gs://lake/tables/", &[("google_bearer_token", "t0ken\n")]).await;
    assert_eq!((seen.path.as_str(), seen.header("authorization")), ("/lake/tables%2Fa", "Bearer t0ken"));
}

#[tokio::test]
async fn a_part_of_an_upload_is_sent_with_the_token_of_its_time() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    write(&file, "first");
    let server = Server::start().await;
    let store = with_token_in(&file, &server);
    let path = StorePath::from("a");
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&path).await.unwrap(), 4);
    upload.write(b"one,");
    upload.wait_for_capacity(0).await.unwrap();
    write(&file, "second");
    upload.write(b"two,");
    upload.finish().await.unwrap();
    let tokens: Vec<_> = server.seen().iter().map(|seen| token(seen).to_owned()).collect();
    assert_eq!(tokens, ["first", "first", "second", "second"]);
}
