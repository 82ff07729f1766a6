//! The state in a store: which settings go together.

use super::*;

#[test]
fn a_state_in_a_store_is_reached_as_the_tables_are_unless_it_has_options_of_its_own() {
    let with = |state: &str| {
        let tables = "root = \"s3://lake/tables\"\nstorage_options = { aws_region = \"eu-central-1\" }";
        let text = SMALLEST.replace("root = \"/srv/lake\"", tables);
        assert_ne!(text, SMALLEST);
        parse(&format!("{text}\n[state]\n{state}"), &[]).0
    };
    let region = |state: &str| match with(state).unwrap().state {
        StatePlace::Documents { options, .. } => format!("{options:?}"),
        StatePlace::File(file) => panic!("{}", file.display()),
    };
    assert!(region("url = \"s3://lake/state\"").contains("eu-central-1"));
    let own = region("url = \"s3://lake/state\"\nstorage_options = { aws_region = \"eu-west-1\" }");
    assert!(own.contains("eu-west-1") && !own.contains("eu-central-1"), "{own}");
    let config = with("url = \"s3://lake/state\"").unwrap();
    assert_eq!(config.state.folder(), None);
    assert!(config.control().starts_with(&config.sync.spool_folder), "the socket is on this machine");
    assert!(with("url = \"s3://a/b\"\nfile = \"/c\"").unwrap_err().lines[0].starts_with("state.url: and state.file"));
    let shared = with("[daemon]\nshare_exports = true").unwrap_err().lines;
    assert!(shared[0].starts_with("daemon.share_exports: is true, and state.url is not set"), "{shared:?}");
    let alone = with("storage_options = { aws_region = \"eu-west-1\" }").unwrap_err().lines;
    assert!(alone[0].starts_with("state.storage_options: are for state.url"), "{alone:?}");
}
