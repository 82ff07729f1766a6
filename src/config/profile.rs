//! Profiles: what is known of a vendor's servers, as defaults of settings.
//!
//! What always holds: whoever sets a key himself wins; each default names the quirk that it answers; and none of them
//! changes where a request may go, or how it is protected.

use config::{Map, Value, ValueKind};

use super::{
    Scheduled,
    section::{Asked, Findings},
};
use crate::spelling::did_you_mean;

/// What is known of the servers of one vendor.
pub struct Profile {
    pub name: &'static str,
    pub defaults: &'static [ProfileDefault],
}

/// One setting that fits these servers better than the usual default.
pub struct ProfileDefault {
    /// With its sections. `export.…` is meant in each `[[export]]`.
    pub key: &'static str,
    pub value: &'static str,
    /// What the servers do, with its number in docs/rules.md.
    pub because: &'static str,
}

const fn default(key: &'static str, value: &'static str, because: &'static str) -> ProfileDefault {
    ProfileDefault { key, value, because }
}

pub const PROFILES: &[Profile] = &[
    Profile {
        name: "ab2d",
        defaults: &[
            default("server.auth", "client-secret-basic", "tokens are for an id and a secret (Q-60)"),
            default("server.http.max_requests_per_file", "6", "each file is handed out six times (Q-44)"),
            default("server.poll.min_interval", "5s", "a poll that is sooner is answered 429 (Q-21)"),
            default("export.initial_since", "2020-02-13T00:00:00Z", "without `_since` only what is new comes (Q-2)"),
        ],
    },
    Profile { name: "aidbox", defaults: &[] },
    Profile {
        name: "azure",
        defaults: &[
            default("server.auth", "client-secret-post", "tokens are for an id and a secret (Q-60)"),
            default("server.kickoff", "get", "a kick-off is taken by GET only (Q-16)"),
        ],
    },
    Profile {
        name: "bcda",
        defaults: &[
            default("server.auth", "client-secret-basic", "tokens are for an id and a secret (Q-60)"),
            default("server.list_separator", "comma", "of repeated values the first counts (Q-12)"),
            default("export.joiners", "server", "with `_since` a group has the history of who joins (Q-18)"),
        ],
    },
    Profile {
        name: "epic",
        defaults: &[
            default("server.supports_since", "false", "there is no `_since` (Q-66)"),
            default("server.poll.min_interval", "1m", "exports take hours to weeks (Q-26)"),
        ],
    },
    Profile {
        name: "google",
        defaults: &[default("export.organize_output_by", "Patient", "groups are exported only so (Q-15)")],
    },
    Profile {
        name: "hapi",
        defaults: &[
            default("server.list_separator", "comma", "of repeated values the first counts (Q-73)"),
            default(
                "server.poll.max_interval",
                "30s",
                "each answer asks to wait for 120 s, however short it is (Q-80)",
            ),
        ],
    },
    Profile { name: "medplum", defaults: &[] },
    Profile {
        name: "oracle",
        defaults: &[
            default("server.list_separator", "comma", "a repeated `_type` is refused (Q-12)"),
            default("server.poll.max_interval", "10m", "the server asks to wait for ten minutes (Q-20)"),
        ],
    },
    Profile {
        name: "smile",
        defaults: &[default(
            "export.initial_since",
            "1900-01-01T00:00:00Z",
            "without `_since` only the last 24 hours come (Q-2)",
        )],
    },
];

/// The profiles whose servers were never seen to report a deletion. Without `_since`, as on Epic, each sync is a
/// full refresh.
const WITHOUT_DELETIONS: &[&str] = &["ab2d", "aidbox", "azure", "bcda", "hapi", "oracle"];

/// The exports whose deletions nobody would ever notice. `asked` is what was read of the configuration.
pub fn unseen_deletions(asked: &[Asked], exports: &[Scheduled]) -> Vec<String> {
    let given = asked.iter().find(|asked| asked.key == "server.profile").and_then(|asked| asked.given.clone());
    let name = given.and_then(|value| value.into_string().ok());
    let Some(name) = name.filter(|name| WITHOUT_DELETIONS.contains(&name.as_str())) else { return Vec::new() };
    let is_unseen =
        |of: &Scheduled| !of.incremental.is_empty() && of.full_refresh.is_empty() && !of.export.reconciled.is_empty();
    let unseen = exports.iter().enumerate().filter(|(_, of)| is_unseen(of));
    let remark = |(index, _)| {
        format!(
            "export[{index}].full_refresh: is not set, and servers of the profile {name} report no deletions (Q-67): rows \
             of deleted resources stay until a full refresh; set a schedule such as \"0 0 3 * * Sun\""
        )
    };
    unseen.map(remark).collect()
}

const EXPORT: &str = "export";
/// Keys of exports that are about groups alone.
const OF_GROUPS: &[&str] = &["organize_output_by", "joiners"];

/// Puts the defaults of the profile that the table names into it, where nobody has set the key.
pub fn apply(table: &mut Map<String, Value>, findings: &mut Findings) {
    let named = table.get("server").and_then(|server| match &server.kind {
        ValueKind::Table(server) => server.get("profile").cloned(),
        _ => None,
    });
    let Some(name) = named.and_then(|name| name.into_string().ok()) else { return };
    let Some(profile) = PROFILES.iter().find(|profile| profile.name == name) else {
        let names = PROFILES.iter().map(|profile| profile.name);
        let (all, meant) = (names.clone().collect::<Vec<_>>().join(", "), did_you_mean(&name, names));
        findings.mistakes.push(format!("server.profile: {name:?} is not one of {all}{meant}"));
        return;
    };
    for default in profile.defaults {
        let path: Vec<_> = default.key.split('.').collect();
        if insert(table, &path, profile, default) {
            let ProfileDefault { key, value, because } = default;
            findings.remarks.push(format!("{key} = {value:?}: from the profile {name}, because {because}"));
        }
    }
}

/// Where a value of a profile says that it is from, for `config print`.
pub fn origin(profile: &Profile) -> String {
    format!("profile {}", profile.name)
}

/// Whether the key was set anywhere.
fn insert(table: &mut Map<String, Value>, path: &[&str], profile: &Profile, default: &ProfileDefault) -> bool {
    let Some((first, rest)) = path.split_first() else { return false };
    let is_set = table.get(*first).is_some_and(|value| !matches!(value.kind, ValueKind::Nil));
    if rest.is_empty() {
        if !is_set {
            let value = Value::new(Some(&origin(profile)), default.value);
            table.insert((*first).to_owned(), value);
        }
        return !is_set;
    }
    if !is_set && *first == EXPORT {
        // That it is missing is another mistake.
        return false;
    }
    if !is_set {
        table.insert((*first).to_owned(), Value::new(None, ValueKind::Table(Map::new())));
    }
    match table.get_mut(*first).map(|value| &mut value.kind) {
        Some(ValueKind::Table(inner)) => insert(inner, rest, profile, default),
        Some(ValueKind::Array(all)) => {
            let inserted = all.iter_mut().map(|value| match &mut value.kind {
                ValueKind::Table(inner) if is_meant(inner, rest) => insert(inner, rest, profile, default),
                _ => false,
            });
            inserted.fold(false, |any, one| any | one)
        }
        _ => false,
    }
}

/// Whether the default is about an export of this level.
fn is_meant(export: &Map<String, Value>, key: &[&str]) -> bool {
    let is_group = export.get("level").is_some_and(|level| level.clone().into_string().is_ok_and(|of| of == "group"));
    is_group || !key.iter().any(|key| OF_GROUPS.contains(key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{effective, parse};

    fn config(server: &str) -> String {
        format!(
            "[server]\nurl = \"https://ehr.example.org/fhir\"\n{server}\n[tables]\nroot = \"/srv/lake\"\n\
             [[export]]\nname = \"a\"\nlevel = \"group\"\ngroup = \"1\"\ntypes = [\"Patient\"]\n"
        )
    }

    #[test]
    fn each_profile_is_a_configuration_without_a_mistake_in_the_keys_that_it_sets() {
        for profile in PROFILES {
            let (_, findings) = parse(&config(&format!("profile = {:?}", profile.name)), &[]);
            for default in profile.defaults {
                let is_read = findings.asked.iter().any(|asked| {
                    let key = asked.key.replace("export[0]", "export");
                    let origin = asked.given.as_ref().and_then(|value| value.origin().map(str::to_owned));
                    key == default.key && origin == Some(super::origin(profile))
                });
                assert!(is_read, "{}: {}", profile.name, default.key);
                let about = |mistake: &&String| mistake.replace("export[0]", "export").starts_with(default.key);
                // What the operator has to add is not the profile's mistake: a client with its secret.
                let mistakes: Vec<_> = findings.mistakes.iter().filter(about).collect();
                assert!(mistakes.is_empty(), "{}: {mistakes:?}", profile.name);
            }
        }
    }

    #[test]
    fn a_key_that_somebody_sets_wins_over_the_profile_in_file_and_environment() {
        let text = config("profile = \"oracle\"\npoll = { max_interval = \"7s\" }");
        let (read, findings) = parse(&text, &[]);
        assert_eq!(read.unwrap().server.poll.interval.max().as_secs(), 7);
        assert!(findings.remarks.iter().all(|remark| !remark.contains("max_interval")), "{:?}", findings.remarks);
        let environment = [("FHIR_SYNC__SERVER__POLL__MAX_INTERVAL", "8s")];
        let (read, _) = parse(&config("profile = \"oracle\""), &environment);
        assert_eq!(read.unwrap().server.poll.interval.max().as_secs(), 8);
        let (read, findings) = parse(&config("profile = \"oracle\""), &[]);
        assert_eq!(read.unwrap().server.poll.interval.max().as_secs(), 600);
        assert!(findings.remarks.iter().any(|remark| remark.contains("from the profile oracle")));
    }

    #[test]
    fn what_is_printed_says_that_it_is_from_the_profile() {
        let (read, findings) = parse(&config("profile = \"epic\""), &[]);
        read.unwrap();
        let printed = effective::rendered(&findings);
        assert!(printed.contains("supports_since = false  # profile epic\n"), "{printed}");
        let (read, _) = parse(&printed, &[]);
        assert!(!read.unwrap().sync.supports_since);
    }

    #[test]
    fn an_export_whose_deletions_nobody_would_notice_is_remarked() {
        let remarks = |profile: &str, schedule: &str| {
            let text =
                config(&format!("profile = {profile:?}")).replace("level = \"group\"\ngroup = \"1\"\n", schedule);
            let (read, findings) = parse(&text, &[]);
            unseen_deletions(&findings.asked, &read.unwrap().exports)
        };
        let increments = "incremental = \"15 * * * *\"\n";
        let found = remarks("hapi", increments);
        assert!(found.len() == 1 && found[0].starts_with("export[0].full_refresh: is not set"), "{found:?}");
        for (profile, schedule) in [
            ("hapi", format!("{increments}full_refresh = \"0 3 * * 0\"\n")),
            ("hapi", String::new()),
            ("hapi", format!("{increments}reconcile = false\n")),
            ("smile", increments.to_owned()),
        ] {
            assert_eq!(remarks(profile, &schedule), [""; 0], "{profile} {schedule}");
        }
    }

    #[test]
    fn an_unknown_profile_is_a_mistake_that_names_the_one_that_was_meant() {
        let (read, _) = parse(&config("profile = \"epci\""), &[]);
        let mistakes = read.unwrap_err().lines.join("\n");
        assert!(mistakes.contains("server.profile") && mistakes.contains("epic"), "{mistakes}");
        assert_eq!(mistakes.matches("server.profile").count(), 1, "{mistakes}");
    }

    #[test]
    fn what_is_about_groups_is_a_default_of_their_exports_only() {
        let exports = "profile = \"google\"";
        let (_, findings) = parse(&config(exports), &[]);
        assert!(findings.remarks.iter().any(|remark| remark.starts_with("export.organize_output_by")));
        let text = config(exports).replace("level = \"group\"\ngroup = \"1\"\n", "");
        let (read, findings) = parse(&text, &[]);
        read.unwrap();
        assert!(findings.remarks.is_empty(), "{:?}", findings.remarks);
    }

    #[test]
    fn without_an_export_the_mistake_is_that_it_is_missing() {
        let text = "[server]\nurl = \"https://a\"\nprofile = \"smile\"\n[tables]\nroot = \"/a\"\n";
        let mistakes = parse(text, &[]).0.unwrap_err().lines;
        assert_eq!(mistakes, ["export: is missing; name what to sync in [[export]]"]);
    }

    /// (rules 1, 91 and 92)
    #[test]
    fn no_profile_changes_where_a_request_may_go_or_how_it_is_protected() {
        let protects = [
            "server.url",
            "server.allow_http",
            "server.token_origins",
            "server.token_url",
            "server.tls",
            "server.proxy",
            "server.rewrite_origin",
            "server.headers",
            "server.allow_private_addresses",
        ];
        for default in PROFILES.iter().flat_map(|profile| profile.defaults) {
            assert!(!protects.iter().any(|key| default.key.starts_with(key)), "{}", default.key);
        }
    }

    #[test]
    fn each_default_of_a_profile_is_on_the_page_of_the_configuration() {
        let page = include_str!("../../docs/configuration.md");
        for profile in PROFILES {
            if profile.defaults.is_empty() {
                assert!(page.contains(&format!("| `{}` | none |", profile.name)), "{}", profile.name);
            }
            for ProfileDefault { key, value, because } in profile.defaults {
                let line = format!("| `{}` | `{key} = {value}` | {because} |", profile.name);
                assert!(page.contains(&line), "docs/configuration.md has no line\n{line}");
            }
        }
    }
}
