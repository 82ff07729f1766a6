//! The names of settings, and how options and environment complete each other.

use super::{super::options::variables, *};

const OURS: [&str; 9] = [
    "aws_credentials",
    "google_bearer_token",
    "aws_s3_allow_unsafe_rename",
    "aws_s3_locking_provider",
    "max_retries",
    "retry_timeout",
    "backoff_config.init_backoff",
    "backoff_config.max_backoff",
    "backoff_config.base",
];

#[test]
fn each_name_is_the_first_that_object_store_has_for_the_setting() {
    for service in Service::ALL {
        for name in service.names() {
            assert_eq!(service.find(name.name), Some(name));
            let known = match service {
                Service::S3 => {
                    name.name.parse::<object_store::aws::AmazonS3ConfigKey>().map(|key| key.as_ref().to_owned())
                }
                Service::Azure => {
                    name.name.parse::<object_store::azure::AzureConfigKey>().map(|key| key.as_ref().to_owned())
                }
                Service::Gcs => {
                    name.name.parse::<object_store::gcp::GoogleConfigKey>().map(|key| key.as_ref().to_owned())
                }
            };
            assert_eq!(known.is_ok(), !OURS.contains(&name.name), "{}", name.name);
            assert!(known.is_err() || known.is_ok_and(|known| known == name.name), "{}", name.name);
        }
    }
}

#[test]
fn the_other_names_of_a_setting_are_known_too() {
    for (service, other, name) in [
        (Service::S3, "secret_access_key", "aws_secret_access_key"),
        (Service::S3, "aws_allow_http", "allow_http"),
        (Service::S3, "aws_timeout", "timeout"),
        (Service::Azure, "sas_token", "azure_storage_sas_key"),
        (Service::Azure, "bearer_token", "azure_storage_token"),
        (Service::Gcs, "service_account_key", "google_service_account_key"),
    ] {
        assert_eq!(service.find(other).unwrap().name, name);
    }
    assert_eq!(Service::S3.find("azure_storage_token"), None);
}

fn environment(service: Service, texts: &[(&str, &str)]) -> BTreeMap<&'static str, String> {
    variables(service, texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())))
}

#[test]
fn an_option_wins_over_its_variable_and_other_variables_count() {
    let environment = environment(
        Service::S3,
        &[
            ("AWS_REGION", "eu-west-1"),
            ("AWS_ENDPOINT_URL", "https://minio"),
            ("AWS_BUCKET", "other"),
            ("AWS_ALLOW_INVALID_CERTIFICATES", "true"),
            ("HOME", "/root"),
        ],
    );
    let completed = options(Service::S3, &[("aws_region", "eu-central-1")]).completed(Service::S3, &environment);
    let expected = [("aws_endpoint", "https://minio"), ("aws_region", "eu-central-1")];
    assert_eq!(completed, expected.map(|(name, text)| (name, text.to_owned())).into());
}

#[test]
fn where_the_options_name_a_credential_those_of_the_environment_do_not_count() {
    let of_cluster = environment(
        Service::S3,
        &[
            ("AWS_ACCESS_KEY_ID", "AKIAENV"),
            ("AWS_SECRET_ACCESS_KEY", "env"),
            ("AWS_SESSION_TOKEN", "env"),
            ("AWS_ROLE_ARN", "arn"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/token"),
        ],
    );
    let completed = |own: &[(&str, &str)]| {
        let names = options(Service::S3, own).completed(Service::S3, &of_cluster);
        names.into_keys().collect::<Vec<_>>()
    };
    let keys = [("aws_access_key_id", "AKIA"), ("aws_secret_access_key", "s")];
    assert_eq!(completed(&keys), ["aws_access_key_id"], "the token of the environment belongs to another key");
    assert_eq!(completed(&[("aws_credentials", "{}")]), Vec::<&str>::new());
    assert_eq!(completed(&[("aws_role_arn", "arn:own")]), ["aws_role_arn", "aws_web_identity_token_file"]);
    assert_eq!(completed(&[]).len(), 5);
    let of_azure = environment(
        Service::Azure,
        &[("AZURE_CLIENT_ID", "id"), ("AZURE_TENANT_ID", "t"), ("AZURE_FEDERATED_TOKEN_FILE", "/token")],
    );
    let with_signature = options(Service::Azure, &[("azure_storage_sas_key", "sig=1")]);
    let completed = with_signature.completed(Service::Azure, &of_azure);
    assert!(!completed.contains_key("azure_federated_token_file"), "{completed:?}");
}

#[test]
fn options_do_not_show_their_secrets() {
    let mut options = options(Service::S3, &[("aws_secret_access_key", "s3cret")]);
    options.proxy = super::super::Proxy::Url(Box::new("http://user:s3cret@proxy:3128".parse().unwrap()));
    assert!(!format!("{options:?}").contains("s3cret"), "{options:?}");
}

#[tokio::test]
async fn the_clients_do_not_show_their_secrets() {
    let server = Server::start().await;
    let store = server.with_keys(&[("aws_session_token", "s3cret")]);
    assert!(!format!("{store:?} {store}").contains("s3cret"), "{store:?}");
}
