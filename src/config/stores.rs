//! How an object store is reached: `storage_options` with the names that `object_store` has for them, `ca_file` and
//! `proxy`. A secret among them is kept as every other secret.

use std::{collections::BTreeMap, path::Path};

use super::{KeyFile, Section, authorization::is_unreadable_here, path, secrets, url};
use crate::{
    spelling::did_you_mean,
    store::{self, Form, Location, Name, Options, Proxy, Service},
};

/// The four forms of a secret.
const FORMS: [&str; 4] = ["_file", "_credential", "_env", "_exec"];

/// The keys of `section` that concern the store of `location`; `None` after a mistake, which has been reported.
pub(super) fn read(section: &mut Section, location: Option<&Location>, key_file: &KeyFile) -> Option<Options> {
    let ca_file = section.optional("ca_file", path);
    check_authorities(section, ca_file.as_deref(), key_file);
    let proxy = section.or("proxy", "none", proxy);
    Some(read_options(section, location, Options::new(ca_file, proxy?), key_file))
}

/// The key `storage_options` alone; `options` says the rest.
pub(super) fn read_options(
    section: &mut Section,
    location: Option<&Location>,
    mut options: Options,
    key_file: &KeyFile,
) -> Options {
    let own = section.open("storage_options");
    let service = match location {
        // Without a place there is nothing to compare the names with.
        None => return options,
        Some(Location::Folder(_)) => None,
        Some(Location::ObjectStore(url)) => Service::of(url),
    };
    match service {
        Some(service) => read_names(own, service, &mut options, key_file),
        // Whoever moves a lake may leave them.
        None if own.keys().is_empty() => {}
        None => section.remark("storage_options", "is of no use for a folder, and not read"),
    }
    options
}

fn proxy(text: &str) -> Result<Proxy, String> {
    match text {
        "none" => Ok(Proxy::None),
        "environment" => Ok(Proxy::Environment),
        text => url(text).map(|url| Proxy::Url(Box::new(url))),
    }
}

fn check_authorities(section: &Section, file: Option<&Path>, key_file: &KeyFile) {
    let Some(path) = file else { return };
    if matches!(key_file, KeyFile::MayBeElsewhere) && is_unreadable_here(path) {
        section.remark("ca_file", "cannot be read here; it is read when a sync starts");
        return;
    }
    if let Err(store::Error::Authorities { path, what }) = store::check_authorities(path) {
        section.mistake("ca_file", &format!("{path} {what}"));
    }
}

/// Reads every key before it fails, so that all mistakes are found.
fn read_names(mut section: Section, service: Service, options: &mut Options, key_file: &KeyFile) {
    // Which key a setting was read from: several names may be for one setting.
    let mut read: BTreeMap<&'static str, String> = BTreeMap::new();
    for key in section.keys() {
        let Some((name, base)) = setting(service, &key) else {
            section.take(&key);
            section.mistake(&key, &unknown(service, &key));
            continue;
        };
        match read.get(name.name) {
            // The other forms of a secret are read with the first of them.
            Some(before) if *before == base && name.is_secret() => continue,
            Some(before) => {
                if section.take(&key) {
                    section.mistake(&key, &format!("is the same setting as {before}; remove one of them"));
                }
                continue;
            }
            None => {}
        }
        if name.is_secret() || (key != base && !section.has(&base)) {
            read_secret(&mut section, name, &base, options, key_file);
        } else if let Some(text) = section.optional(&key, |text| name.check(text).map(|()| text.to_owned())) {
            options.set(name, text);
        }
        read.insert(name.name, base);
    }
    for (name, what) in options.mistakes(service, &store::variables_of_process(service)) {
        section.mistake(read.get(name).map_or(name, String::as_str), &what);
    }
    section.end();
}

fn read_secret(section: &mut Section, name: &Name, base: &str, options: &mut Options, key_file: &KeyFile) {
    let Ok(Some(kept)) = secrets::read(section, base) else { return };
    // What is wrong with it is known before the first request, and reported; it is set all the same.
    let _ = kept.text(section, key_file);
    options.keep(name, kept.secret);
}

/// The setting of a key, and the key without the form of a secret. `azure_federated_token_file` is a name of its own.
fn setting(service: Service, key: &str) -> Option<(&'static Name, String)> {
    if let Some(name) = service.find(key) {
        return Some((name, key.to_owned()));
    }
    let base = FORMS.iter().find_map(|form| key.strip_suffix(form))?;
    service.find(base).filter(|name| name.may_be_secret()).map(|name| (name, base.to_owned()))
}

fn unknown(service: Service, key: &str) -> String {
    let other = Service::ALL.into_iter().find(|other| *other != service && setting(*other, key).is_some());
    if let Some(other) = other {
        return format!("is a setting of {}, and the URL is one of {}", other.shown(), service.shown());
    }
    let is_taken = |name: &&Name| !matches!(name.form, Form::Refused(_));
    let known = service.names().filter(is_taken).flat_map(|name| {
        let forms = FORMS.iter().filter(|_| name.may_be_secret()).map(|form| format!("{}{form}", name.name));
        std::iter::once(name.name.to_owned()).filter(|_| !name.is_secret()).chain(forms)
    });
    let known: Vec<_> = known.collect();
    let meant = did_you_mean(key, known.iter().map(String::as_str));
    format!("is not a setting that a store of {} has{meant}", service.shown())
}

#[cfg(all(feature = "s3", feature = "azure", feature = "gcs"))]
#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::super::{effective::rendered, parse};
    use crate::store::Proxy;

    fn smallest(root: &str, tables: &str) -> String {
        format!(
            "[server]\nurl = \"https://ehr.example.org/fhir\"\n[[export]]\nname = \"all\"\ntypes = [\"Patient\"]\n\
             [tables]\nroot = \"{root}\"\n{tables}"
        )
    }

    fn mistakes(root: &str, tables: &str) -> Vec<String> {
        parse(&smallest(root, tables), &[]).0.unwrap_err().lines
    }

    const S3: &str = "s3://lake/tables";

    /// Each mistake with its key; no text of a secret is in it.
    #[test]
    fn each_mistake_in_the_options_of_a_store_has_its_key_and_its_reason() {
        for (options, expected) in [
            ("aws_regoin = \"x\"", "aws_regoin: is not a setting that a store of S3 has; did you mean \"aws_region\"?"),
            (
                "azure_storage_sas_key_file = \"/s\"",
                "azure_storage_sas_key_file: is a setting of Azure, and the URL is one",
            ),
            (
                "aws_secret_access_key = \"s3cret\"",
                "aws_secret_access_key: is a secret; write it to a file that only its",
            ),
            ("secret_access_key = \"s3cret\"", "secret_access_key: is a secret; write it to a file that only its"),
            ("aws_sse_customer_key_base64 = \"s3cret\"", "aws_sse_customer_key_base64: is a secret; write it to"),
            ("timeout = \"5 parsecs\"", "timeout: \"5 parsecs\" is not a duration from 1s to 15m"),
            ("connect_timeout = \"1h\"", "connect_timeout: \"1h\" is not a duration from 100ms to 1m"),
            ("max_retries = 1000", "max_retries: \"1000\" is not a number from 0 to 100"),
            ("retry_timeout = \"1h\"", "retry_timeout: \"1h\" is not a duration from 1s to 5m"),
            ("allow_http = \"perhaps\"", "allow_http: \"perhaps\" is neither true nor false"),
            (
                "allow_invalid_certificates = true",
                "allow_invalid_certificates: is not possible: certificates are always",
            ),
            ("aws_endpoint = \"minio:9000\"", "aws_endpoint: is not an http or https URL without user and query"),
            (
                "aws_endpoint = \"http://minio:9000\"",
                "aws_endpoint: is not an https URL; set allow_http = true as well",
            ),
            ("aws_bucket = \"lake\"", "aws_bucket: is not set here: it is part of the URL"),
            ("aws_conditional_put = \"disabled\"", "aws_conditional_put: \"disabled\" is not etag"),
            ("aws_s3_allow_unsafe_rename = true", "aws_s3_allow_unsafe_rename: is not needed: commits use conditional"),
            ("aws_server_side_encryption = \"aes\"", "aws_server_side_encryption: \"aes\" is not AES256 or aws:kms or"),
            ("aws_sse_kms_key_id = \"k\"", "aws_sse_kms_key_id: needs aws_server_side_encryption = \"aws:kms\""),
            (
                "aws_server_side_encryption = \"sse-c\"",
                "aws_server_side_encryption: \"sse-c\" needs the key of the customer",
            ),
            (
                "aws_access_key_id = \"AKIA\"",
                "aws_access_key_id: needs aws_secret_access_key too, which is neither set",
            ),
            ("aws_role_arn = \"arn\"", "aws_role_arn: needs aws_web_identity_token_file too"),
            (
                "proxy_url = \"http://user:s3cret@proxy\"",
                "proxy_url: is not set here; the key `proxy` beside storage_options",
            ),
            ("aws_region = \"a\"\nregion = \"b\"", "region: is the same setting as aws_region; remove one of them"),
            ("aws_region = \"a\"\nAWS_REGION = \"b\"", "AWS_REGION: is set twice, in small letters and in capitals"),
            ("aws_region = [\"a\"]", "aws_region: must be a single value"),
        ] {
            let found = mistakes(S3, &format!("[tables.storage_options]\n{options}"));
            let expected = format!("tables.storage_options.{expected}");
            assert_eq!(found.len(), 1, "{options}: {found:?}");
            let is_same =
                found[0].starts_with(&expected) || found[0].to_lowercase().starts_with(&expected.to_lowercase());
            assert!(is_same && !found[0].contains("s3cret"), "{expected}\nnot in\n{found:?}");
        }
    }

    #[test]
    fn two_kinds_of_credentials_are_a_mistake() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "sig=s3cret").unwrap();
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let two = format!("azure_storage_sas_key_file = {secret:?}\nazure_federated_token_file = \"/token\"");
        let found = mistakes("abfss://lake@account.dfs.core.windows.net", &format!("[tables.storage_options]\n{two}"));
        let expected =
            "tables.storage_options.azure_federated_token_file: is a credential, and azure_storage_sas_key is";
        assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    }

    #[test]
    fn a_secret_is_kept_in_each_of_the_four_forms_and_its_file_is_looked_at() {
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("secret");
        fs::write(&secret, "s3cret").unwrap();
        let own = format!("[tables.storage_options]\naws_session_token_file = {secret:?}");
        let found = mistakes(S3, &own);
        assert!(
            found.iter().any(|mistake| mistake.contains("aws_session_token_file: ") && mistake.contains("chmod 600"))
        );
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
        let own = format!(
            "[tables.storage_options]\naws_access_key_id_env = \"PATH\"\naws_secret_access_key_file = {secret:?}\n\
             aws_session_token_exec = [\"cat\", {secret:?}]\naws_container_authorization_token_file = \"/token\""
        );
        let (config, _) =
            parse(&smallest(S3, &own.replace("aws_container_authorization_token_file = \"/token\"", "")), &[]);
        let options = config.unwrap().tables.storage_options;
        let kept: Vec<_> = options.secrets().map(|(name, _)| name).collect();
        assert_eq!(kept, ["aws_access_key_id", "aws_secret_access_key", "aws_session_token"]);
        let found = mistakes(S3, &own);
        assert!(found[0].contains("aws_container_authorization_token_file: is a credential, and"), "{found:?}");
    }

    #[test]
    fn a_secret_of_the_environment_of_fhir_sync_is_taken_as_it_is() {
        let environment = [
            ("FHIR_SYNC__TABLES__STORAGE_OPTIONS__AWS_ACCESS_KEY_ID", "AKIA"),
            ("FHIR_SYNC__TABLES__STORAGE_OPTIONS__AWS_SECRET_ACCESS_KEY", "s3cret"),
        ];
        let (config, findings) = parse(&smallest(S3, ""), &environment);
        let config = config.unwrap();
        assert_eq!(config.tables.storage_options.secrets().count(), 1);
        assert!(!format!("{config:?}{}", rendered(&findings)).contains("s3cret"));
    }

    #[test]
    fn proxy_authorities_and_dotted_names_are_read() {
        let own = "proxy = \"http://proxy:3128\"\n[tables.storage_options]\nbackoff_config.max_backoff = \"2s\"\n\
                   \"backoff_config.init_backoff\" = \"1s\"";
        let (config, findings) = parse(&smallest(S3, own), &[]);
        let options = config.unwrap().tables.storage_options;
        assert_eq!(options.proxy, Proxy::Url(Box::new("http://proxy:3128".parse().unwrap())));
        let printed = rendered(&findings);
        let again = parse(&printed, &[]).0.unwrap().tables.storage_options;
        assert_eq!(options, again, "{printed}");
        let found = mistakes(S3, "ca_file = \"/none.pem\"");
        assert!(found[0].starts_with("tables.ca_file: /none.pem cannot be read"), "{found:?}");
    }

    #[test]
    fn options_of_a_store_are_not_read_for_a_folder() {
        let (config, findings) = parse(&smallest("/srv/lake", "[tables.storage_options]\naws_region = \"x\""), &[]);
        assert!(config.is_ok());
        assert_eq!(findings.remarks, ["tables.storage_options: is of no use for a folder, and not read"]);
    }
}
