//! Encryption by the store, and uploads in parts.

use object_store::{ObjectStoreExt as _, PutPayload, WriteMultipart, path::Path};

use super::*;

const PREFIX: &str = "x-amz-server-side-encryption";

/// The headers of encryption of each request that writes: a file in one request, and one in two parts.
async fn encrypted(own: &[(&str, &str)]) -> BTreeMap<&'static str, Vec<String>> {
    let server = Server::start().await;
    let store = server.with_keys(own);
    store.put(&Path::from("small"), "1".into()).await.unwrap();
    let mut upload = store.put_multipart(&Path::from("large")).await.unwrap();
    upload.put_part(PutPayload::from("1")).await.unwrap();
    upload.complete().await.unwrap();
    store.get(&Path::from("small")).await.unwrap();
    let of = |seen: &Seen| {
        let headers = seen.headers.keys().filter(|name| name.as_str().starts_with(PREFIX));
        let mut headers: Vec<_> = headers
            .map(|name| format!("{}={}", name.as_str().trim_start_matches(PREFIX), seen.header(name.as_str())))
            .collect();
        headers.sort();
        (seen.operation(), headers)
    };
    server.seen().iter().map(of).collect()
}

#[tokio::test]
async fn what_begins_a_file_asks_for_its_encryption_by_the_store_or_by_a_key_of_the_key_service() {
    for (kind, own) in [
        ("=AES256", vec![("aws_server_side_encryption", "AES256")]),
        ("=aws:kms", vec![("aws_server_side_encryption", "aws:kms"), ("aws_sse_kms_key_id", "key-1")]),
        ("=aws:kms:dsse", vec![("aws_server_side_encryption", "aws:kms:dsse"), ("aws_sse_kms_key_id", "key-1")]),
    ] {
        let headers = encrypted(&own).await;
        for operation in ["PutObject", "CreateMultipartUpload"] {
            let found = &headers[operation];
            assert!(found.contains(&kind.to_owned()), "{operation} {headers:?}");
            assert_eq!(found.contains(&"-aws-kms-key-id=key-1".to_owned()), own.len() == 2, "{operation} {headers:?}");
        }
    }
}

#[tokio::test]
async fn the_key_of_the_customer_goes_with_each_request_that_writes_or_reads_content() {
    let key = "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=";
    let own = [("aws_server_side_encryption", "sse-c"), ("aws_sse_customer_key_base64", key)];
    let headers = encrypted(&own).await;
    for operation in ["PutObject", "CreateMultipartUpload", "UploadPart", "GetObject"] {
        assert!(headers[operation].contains(&format!("-customer-key={key}")), "{operation} {headers:?}");
    }
}

#[tokio::test]
async fn an_upload_that_is_dropped_is_aborted_before_the_next_write() {
    let server = Server::start().await;
    let store = server.with_keys(&[]);
    let mut upload = store.put_multipart(&Path::from("a")).await.unwrap();
    upload.put_part(PutPayload::from("1")).await.unwrap();
    drop(upload);
    assert_eq!(server.count("AbortMultipartUpload"), 0);
    store.put(&Path::from("b"), "1".into()).await.unwrap();
    store.put(&Path::from("c"), "1".into()).await.unwrap();
    let operations = ["CreateMultipartUpload", "UploadPart", "AbortMultipartUpload", "PutObject", "PutObject"];
    assert_eq!(server.operations(), operations);
    assert_eq!(server.seen()[2].path, "/lake/a");
}

#[tokio::test]
async fn an_upload_with_a_part_that_failed_is_aborted() {
    let server =
        Server::failing(|seen, _| seen.query.contains("partNumber=2").then(|| refusal(403, "AccessDenied"))).await;
    let store = server.with_keys(&[]);
    let mut upload = WriteMultipart::new_with_chunk_size(store.put_multipart(&Path::from("a")).await.unwrap(), 4);
    upload.write(b"one,two,three");
    assert!(upload.finish().await.is_err());
    store.put(&Path::from("b"), "1".into()).await.unwrap();
    assert_eq!((server.count("AbortMultipartUpload"), server.count("CompleteMultipartUpload")), (1, 0));
}

#[tokio::test]
async fn an_upload_is_not_completed_while_a_part_is_missing() {
    let server = Server::start().await;
    let store = server.with_keys(&[]);
    let mut upload = store.put_multipart(&Path::from("a")).await.unwrap();
    drop(upload.put_part(PutPayload::from("1")));
    upload.put_part(PutPayload::from("2")).await.unwrap();
    assert!(upload.complete().await.unwrap_err().to_string().contains("1 of 2 parts"));
    assert_eq!(server.count("CompleteMultipartUpload"), 0);
}

#[tokio::test]
async fn what_was_aborted_or_completed_is_not_aborted_again() {
    let server = Server::start().await;
    let store = server.with_keys(&[]);
    let mut aborted = store.put_multipart(&Path::from("a")).await.unwrap();
    aborted.abort().await.unwrap();
    drop(aborted);
    let mut completed = store.put_multipart(&Path::from("b")).await.unwrap();
    completed.put_part(PutPayload::from("1")).await.unwrap();
    completed.complete().await.unwrap();
    drop(completed);
    store.put(&Path::from("c"), "1".into()).await.unwrap();
    assert_eq!(server.count("AbortMultipartUpload"), 1);
}
