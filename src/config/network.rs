//! `[server]`, what concerns the network: addresses, inner addresses, headers of one's own, proxy and `[server.tls]`.

use url::Url;

use super::{
    Section,
    authorization::{KeyFile, is_unreadable_here},
    boolean, path, proxy, url,
};
use crate::export::{self, ClientCertificate, OwnHeaders, Proxy, Tls, TlsVersion, Trust};

pub(super) struct Network {
    pub proxy: Proxy,
    pub rewrite_origin: Vec<Url>,
    pub allow_private_addresses: bool,
    pub headers: OwnHeaders,
    pub tls: Tls,
}

pub(super) fn read(section: &mut Section, server: Option<&Url>, key_file: &KeyFile) -> Option<Network> {
    let proxy = section.or("proxy", "none", proxy);
    let rewrite_origin = section.list("rewrite_origin", |text| {
        let inner = url(text)?;
        server.map_or(Ok(()), |server| export::check_inner(&inner, server))?;
        Ok(inner)
    });
    let allow_private_addresses = section.or("allow_private_addresses", "false", boolean);
    // They are often keys of an interface.
    section.is_secret("headers");
    let texts = section.texts("headers");
    let mut headers = OwnHeaders::default();
    for (name, value) in &texts {
        if let Err(mistake) = headers.add(name, value) {
            section.mistake("headers", &mistake);
        }
    }
    let tls = read_tls(section.section("tls"), key_file);
    Some(Network {
        proxy: proxy?,
        rewrite_origin: rewrite_origin?,
        allow_private_addresses: allow_private_addresses?,
        headers,
        tls: tls?,
    })
}

fn read_tls(mut section: Section, key_file: &KeyFile) -> Option<Tls> {
    let ca_file = section.optional("ca_file", path);
    let is_exclusive = section.or("exclusive_ca", "false", boolean);
    let min_version = section.choice("min_version", "1.2", &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)]);
    let certificate = section.optional("client_certificate_file", path);
    let key = section.optional("client_key_file", path);
    let trust = match (ca_file, is_exclusive?) {
        (Some(path), true) => Some(Trust::Only(path)),
        (Some(path), false) => Some(Trust::HostAnd(path)),
        (None, false) => Some(Trust::Host),
        (None, true) => {
            section.mistake("ca_file", "is missing; exclusive_ca = true needs the file of the only authorities");
            None
        }
    };
    let client_certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some(Some(ClientCertificate { certificate, key })),
        (None, None) => Some(None),
        (Some(_), None) => {
            section.mistake("client_key_file", "is missing; the client certificate needs its private key");
            None
        }
        (None, Some(_)) => {
            section.mistake("client_certificate_file", "is missing; client_key_file belongs to one");
            None
        }
    };
    let tls = Tls { trust: trust?, min_version: min_version?, client_certificate: client_certificate? };
    check_files(&section, &tls, key_file);
    section.end();
    Some(tls)
}

/// The files are read once more when a client is made; here, so that `check` finds what is wrong with them.
fn check_files(section: &Section, tls: &Tls, key_file: &KeyFile) {
    if matches!(key_file, KeyFile::MayBeElsewhere) {
        let elsewhere = tls.files().into_iter().filter(|(_, path)| is_unreadable_here(path));
        let remarks =
            elsewhere.map(|(key, _)| section.remark(key, "cannot be read here; it is read when a sync starts"));
        if remarks.count() > 0 {
            return;
        }
    }
    match tls.read() {
        Ok(_) => {}
        Err(export::Error::Config { setting, reason }) => {
            section.mistake(setting.rsplit('.').next().unwrap_or(setting), &reason);
        }
        Err(other) => section.mistake("ca_file", &other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, SAMPLE, effective::rendered, parse};
    use crate::export::{FileAuth, Proxy, Tls, TlsVersion, Trust};

    fn smallest(server: &str) -> String {
        format!(
            "[tables]\nroot = \"/srv/lake\"\n[[export]]\nname = \"all\"\ntypes = [\"Patient\"]\n\
             [server]\nurl = \"https://ehr.example.org/fhir\"\n{server}"
        )
    }

    fn read(server: &str) -> Config {
        parse(&smallest(server), &[]).0.unwrap()
    }

    fn mistakes(server: &str) -> Vec<String> {
        parse(&smallest(server), &[]).0.unwrap_err().lines
    }

    #[test]
    fn without_settings_of_the_network_everything_is_as_the_room_has_it() {
        let server = read("").server;
        assert_eq!((server.tls, server.proxy), (Tls::default(), Proxy::None));
        assert!(!server.allow_private_addresses && server.rewrite_origin.is_empty());
    }

    #[test]
    fn the_settings_of_the_network_are_read() {
        let folder = tempfile::tempdir().unwrap();
        let ca = folder.path().join("ca.pem");
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        std::fs::write(&ca, certified.cert.pem()).unwrap();
        let text = format!(
            "rewrite_origin = [\"http://hapi:8080\"]\nallow_private_addresses = true\n\
             headers = {{ Epic-Client-ID = \"1\" }}\n\
             [server.tls]\nca_file = {ca:?}\nexclusive_ca = true\nmin_version = \"1.3\"\n\
             [server.http]\nmax_decompression_ratio = 50\n[sync]\nmax_run_time = \"2h\""
        );
        let config = read(&text);
        let server = config.server;
        assert_eq!((server.tls.trust, server.tls.min_version), (Trust::Only(ca), TlsVersion::V1_3));
        assert_eq!(server.rewrite_origin[0].as_str(), "http://hapi:8080/");
        assert!(server.allow_private_addresses);
        assert_eq!(server.limits.max_decompression_ratio, 50);
        assert_eq!(config.sync.max_run_time.as_secs(), 7200);
    }

    #[test]
    fn each_mistake_in_the_settings_of_the_network_has_its_key_and_its_reason() {
        let authorities = "server.tls.ca_file: is missing; exclusive_ca = true needs the file of the only authorities";
        let always = "server.file_auth: \"always\" sends a token with each file, and without client_id there is none";
        for (text, expected) in [
            ("[server.tls]\nexclusive_ca = true", authorities),
            ("[server.tls]\nca_file = \"/none.pem\"", "server.tls.ca_file: /none.pem cannot be read"),
            ("[server.tls]\nmin_version = \"1.1\"", "server.tls.min_version: \"1.1\" is not one of 1.2, 1.3"),
            ("[server.tls]\nclient_certificate_file = \"/c\"", "server.tls.client_key_file: is missing"),
            ("[server.tls]\nclient_key_file = \"/k\"", "server.tls.client_certificate_file: is missing"),
            ("[server.tls]\nca_fil = \"/c\"", "server.tls.ca_fil: is not a key that fhir-sync knows"),
            ("headers = { Host = \"s3cret\" }", "server.headers: \"Host\" is a header that fhir-sync"),
            (
                "rewrite_origin = [\"https://ehr.example.org\"]",
                "server.rewrite_origin: https://ehr.example.org/ is the",
            ),
            ("file_auth = \"manifest\"", "server.file_auth: \"manifest\" is now called \"auto\""),
            ("file_auth = \"always\"", always),
        ] {
            let mistakes = mistakes(text);
            assert_eq!(mistakes.len(), 1, "{mistakes:?}");
            assert!(mistakes[0].starts_with(expected) && !mistakes[0].contains("s3cret"), "{mistakes:?}");
        }
        assert_eq!(read("").server.file_auth, FileAuth::Auto);
    }

    #[test]
    fn a_header_of_one_s_own_is_not_printed() {
        let text = SAMPLE.replace("# headers = { Epic-Client-ID =", "headers = { Epic-Client-ID =");
        let (config, findings) = parse(&text.replace("0b1c2d3e", "s3cret"), &[]);
        assert!(!format!("{:?}", config.unwrap()).contains("s3cret"));
        let printed = rendered(&findings);
        assert!(printed.contains("# headers is set, and may be a secret") && !printed.contains("s3cret"), "{printed}");
    }
}
