//! What a failed request says, and to whom.

use object_store::{Error, ObjectStoreExt as _, PutMode, PutOptions, path::Path};

use super::{
    super::failure::{Cause, Failure},
    *,
};

async fn failure(status: u16, code: &'static str) -> (Error, Failure) {
    let server = Server::failing(move |_, _| Some(refusal(status, code))).await;
    let error = server.with_keys(&[]).put(&Path::from("a"), "1".into()).await.unwrap_err();
    let failure = Failure::within(&error).unwrap().clone();
    (error, failure)
}

#[tokio::test]
async fn each_refusal_is_one_sentence_with_the_answer_and_the_way_out() {
    for (status, code, cause, sentence) in [
        (400, "ExpiredToken", Cause::Expired, "the credentials have expired (400 ExpiredToken); renew them: "),
        (
            403,
            "InvalidAccessKeyId",
            Cause::Refused,
            "the store does not accept the credentials (403 InvalidAccessKeyId);",
        ),
        (403, "SignatureDoesNotMatch", Cause::Refused, "the store does not accept the credentials (403 Signature"),
        (
            403,
            "AccessDenied",
            Cause::Denied,
            "the credentials may not do this (403 AccessDenied); docs/stores.md lists",
        ),
        (
            404,
            "NoSuchBucket",
            Cause::NoBucket,
            "there is no such bucket or container (404 NoSuchBucket); create it, or",
        ),
        (400, "AuthorizationHeaderMalformed", Cause::OtherRegion, "the bucket is in another region (400 "),
        (403, "RequestTimeTooSkewed", Cause::ClockSkew, "the store refuses requests because the clock of this host is"),
        (
            503,
            "SlowDown",
            Cause::Busy,
            "the store did not take the request, however often it was repeated (503 SlowDown)",
        ),
    ] {
        let (error, failure) = failure(status, code).await;
        assert_eq!(failure.cause, cause, "{code}");
        assert!(failure.to_string().starts_with(sentence), "{failure}");
        let all = format!("{error} {error:?} {failure:?}");
        for secret in ["s3cret", "StringToSign", "127.0.0.1", "Signature="] {
            assert!(!all.contains(secret), "{secret} in {all}");
        }
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_never_a_file_that_is_not_there() {
    let server = Server::failing(|_, _| Some(refusal(404, "NoSuchBucket"))).await;
    let error = server.with_keys(&[]).get(&Path::from("a")).await.unwrap_err();
    assert!(!matches!(error, Error::NotFound { .. }), "{error:?}");
    let server = Server::start().await;
    let error = server.with_keys(&[]).get(&Path::from("a")).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
}

#[tokio::test]
async fn a_file_that_exists_already_stays_what_its_error_says() {
    let server = Server::start().await;
    let store = server.with_keys(&[]);
    let path = Path::from("a");
    let create = || store.put_opts(&path, "1".into(), PutOptions::from(PutMode::Create));
    create().await.unwrap();
    assert!(matches!(create().await, Err(Error::AlreadyExists { .. })));
}

#[tokio::test]
async fn a_conditional_write_that_is_a_conflict_is_sent_again() {
    let conflict = |_: &Seen, before| (before == 0).then(|| refusal(409, "ConditionalRequestConflict"));
    let server = Server::failing(conflict).await;
    let (store, path) = (server.with_keys(&[]), Path::from("a"));
    store.put_opts(&path, "1".into(), PutOptions::from(PutMode::Create)).await.unwrap();
    assert_eq!(server.operations(), ["PutObject", "PutObject"]);
}

#[tokio::test]
async fn a_busy_store_is_asked_again() {
    let server = Server::failing(|_, before| (before == 0).then(|| refusal(503, "SlowDown"))).await;
    server.with_keys(&[]).put(&Path::from("a"), "1".into()).await.unwrap();
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn a_store_that_cannot_be_reached_is_named_without_the_request() {
    let server = Server::start().await;
    let store = server.with_keys(&[]);
    let endpoint = server.endpoint.clone();
    drop(server);
    let mut files = store.list(Some(&Path::from("tables")));
    let error = futures::StreamExt::next(&mut files).await.unwrap().unwrap_err();
    let failure = Failure::within(&error).unwrap();
    let sentence = format!("the store cannot be reached: {endpoint}: Connection refused; check the endpoint");
    assert!(failure.to_string().starts_with(&sentence), "{failure}");
    assert!(failure.is_transient() && !error.to_string().contains("list-type"), "{error}");
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_waited_for_until_the_time_is_over() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let reached = [("aws_endpoint", endpoint.as_str()), ("allow_http", "true"), ("max_retries", "0")];
    let keys = [("aws_access_key_id", "k"), ("aws_secret_access_key", "s")];
    let mut options = options(Service::S3, reached.iter().chain(&keys));
    // Shorter than the configuration allows.
    options.set(Service::S3.find("timeout").unwrap(), "20ms".to_owned());
    let store = connect(&URL.parse().unwrap(), &options).unwrap();
    let error = store.get(&Path::from("a")).await.unwrap_err();
    assert!(error.to_string().contains(&format!("{endpoint}: it did not answer in time")), "{error}");
}

#[tokio::test]
async fn a_machine_without_credentials_says_what_was_asked_in_vain() {
    let server = Server::start().await;
    let metadata = Server::failing(|_, _| Some(StatusCode::NOT_FOUND.into_response())).await;
    let own = [("aws_metadata_endpoint", metadata.endpoint.as_str())];
    let store = connect(&URL.parse().unwrap(), &server.options(&own)).unwrap();
    let error = store.get(&Path::from("a")).await.unwrap_err();
    let sentence = "there are no credentials: the metadata service of this machine refused (404); name some in";
    assert!(Failure::within(&error).unwrap().to_string().starts_with(sentence), "{error}");
    assert_eq!(server.seen().len(), 0);
}

#[test]
fn whatever_an_error_says_no_url_of_it_is_repeated() {
    let source = "failed at https://host/path?sig=s3cret and s3://bucket/key".into();
    let failure = Failure::of(&Error::Generic { store: "x", source }, "https://host");
    assert_eq!(failure.to_string(), "Generic x error: failed at … and …");
}
