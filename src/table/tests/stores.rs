//! Tables in an object store: how files arrive there, and what is said when the store says no.

use arrow::{
    array::{BinaryArray, RecordBatch},
    datatypes::{DataType, Field},
};
use axum::response::IntoResponse as _;
use object_store::{ObjectStore, ObjectStoreExt as _, path::Path as StorePath};
use parquet::file::properties::WriterProperties;

use super::*;
use crate::{
    store::{
        Cause,
        tests::{Seen, Server, refusal},
    },
    table::data_file::DataFileWriter,
};

const MIB: usize = 1 << 20;

/// A data file with rows of this many MiB together, which cannot be compressed.
async fn file(store: &Arc<dyn ObjectStore>, mib: usize) -> DataFileWriter {
    let schema = Arc::new(Schema::new(vec![Field::new("bytes", DataType::Binary, false)]));
    let mut random = fastrand::Rng::with_seed(7);
    let rows: Vec<Vec<u8>> = (0..mib).map(|_| (0..MIB).map(|_| random.u8(..)).collect()).collect();
    let column = BinaryArray::from_iter_values(rows);
    let rows = RecordBatch::try_new(Arc::clone(&schema), vec![Arc::new(column)]).unwrap();
    let path = StorePath::from("a.parquet");
    let properties = WriterProperties::builder().set_dictionary_enabled(false).build();
    let mut writer = DataFileWriter::create(Arc::clone(store), path, &schema, properties, 0).unwrap();
    writer.write(&rows).await.unwrap();
    writer
}

#[tokio::test]
async fn a_file_below_one_part_is_one_request_and_a_larger_one_has_few_parts_on_their_way() {
    let server = Server::start().await;
    file(&server.with_keys(&[]), 9).await.finish(&Vec::new()).await.unwrap();
    assert_eq!(server.operations(), ["PutObject"]);
    let server = Server::start().await;
    file(&server.with_keys(&[]), 61).await.finish(&Vec::new()).await.unwrap();
    let counted = ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"].map(|one| server.count(one));
    assert_eq!((counted, server.seen().len()), ([1, 7, 1], 9));
    assert!(server.most_in_flight() <= 2, "{}", server.most_in_flight());
}

#[tokio::test]
async fn a_file_that_nobody_finishes_is_aborted_before_the_next_one_is_written() {
    let is_third_part = |seen: &Seen, _| seen.query.contains("partNumber=3").then(|| refusal(403, "AccessDenied"));
    let server = Server::failing(is_third_part).await;
    let store = server.with_keys(&[]);
    let writer = file(&store, 40).await;
    assert!(writer.finish(&Vec::new()).await.is_err());
    store.put(&StorePath::from("b"), "1".into()).await.unwrap();
    assert_eq!((server.count("CompleteMultipartUpload"), server.count("AbortMultipartUpload")), (0, 1));
}

fn root(server: &Server) -> Root {
    let mut config = Config::new(Location::ObjectStore("s3://lake/tables".parse().unwrap()));
    config.storage_options = server.options_with_keys(&[]);
    Root::new(config).unwrap()
}

#[tokio::test]
async fn a_table_whose_store_says_no_is_never_taken_for_a_table_that_is_not_there() {
    for (status, code, cause) in [
        (403, "AccessDenied", Cause::Denied),
        (403, "InvalidAccessKeyId", Cause::Refused),
        (404, "NoSuchBucket", Cause::NoBucket),
        (503, "SlowDown", Cause::Busy),
    ] {
        let server = Server::failing(move |_, _| Some(refusal(status, code))).await;
        let error = root(&server).open(patient()).await.map(|table| table.is_some()).unwrap_err();
        let Error::StoreFailed { place, failure } = &error else { panic!("{error:?}") };
        assert_eq!((place.as_str(), &failure.cause), ("s3://lake/tables/Patient.parquet", &cause));
        assert!(error.to_string().contains(&format!("({status} {code})")), "{error}");
    }
    let server = Server::start().await;
    assert!(root(&server).open(patient()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_trial_names_all_permissions_that_are_missing_and_whether_two_writers_exclude_each_other() {
    let server = Server::start().await;
    assert_eq!(root(&server).try_permissions().await.unwrap(), Exclusive::Held);
    let denied = |seen: &Seen, _| {
        matches!(seen.operation(), "PutObject" | "DeleteObjects").then(|| refusal(403, "AccessDenied"))
    };
    let server = Server::failing(denied).await;
    let error = root(&server).try_permissions().await.unwrap_err();
    let sentence = "s3://lake/tables/_fhir_sync/trial: the credentials may not delete, write files; docs/stores.md";
    assert!(error.to_string().starts_with(sentence), "{error}");
    let unconditional =
        |seen: &Seen, _| (seen.operation() == "PutObject").then(|| ([("etag", "\"1\"")], "").into_response());
    let server = Server::failing(unconditional).await;
    assert_eq!(root(&server).try_permissions().await.unwrap(), Exclusive::Ignored);
}
