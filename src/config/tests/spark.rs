//! Where Spark writes the tables: which settings go together.

use super::*;

const WITH_SPARK: &str = r#"
    [server]
    url = "https://ehr.example.org/fhir"
    [tables]
    root = "/srv/lake"
    engine = "spark"
    [tables.spark]
    url = "sc://spark.example.org:15002/;use_ssl=true"
    schema = "main.fhir"
    [[export]]
    name = "all"
    types = ["Patient"]
"#;

#[test]
fn a_program_without_the_client_of_spark_says_how_to_build_it() {
    let read = parse(WITH_SPARK, &[]).0;
    assert_eq!(read.is_ok(), cfg!(feature = "spark"));
    match read {
        Ok(config) => {
            let spark = config.sync.spark.unwrap();
            assert_eq!(spark.address.place(), "sc://spark.example.org:15002");
            assert_eq!(spark.tables.schema.unwrap(), ["main", "fhir"]);
        }
        Err(Mistakes { lines: mistakes, .. }) => {
            assert!(mistakes.iter().any(|mistake| mistake.contains("--features spark")), "{mistakes:?}");
        }
    }
}

#[test]
fn settings_of_spark_that_contradict_each_other_are_mistakes() {
    let url = "url = \"sc://spark.example.org:15002/;use_ssl=true\"";
    for (from, to, what) in [
        ("engine = \"spark\"", "engine = \"delta\"", "tables.spark.url: is set, and tables.engine is \"delta\""),
        ("schema = \"main.fhir\"", "schema = \"a.b.c\"", "catalog.schema"),
        (url, "url = \"sc://spark.example.org/;token=marker\"", "token_file"),
        (url, "url = \"sc://spark.example.org\"\ntoken_env = \"PATH\"", "in the clear"),
        (url, "", "tables.spark.url: is missing"),
        (url, &format!("{url}\nconfs = {{ \"spark.sql.session.timeZone\" = \"CET\" }}"), "sets itself"),
    ] {
        let found = mistakes(&WITH_SPARK.replace(from, to));
        assert!(found.iter().any(|mistake| mistake.contains(what)), "{what}: {found:?}");
        assert!(found.iter().all(|mistake| !mistake.contains("marker")), "{found:?}");
    }
}

#[test]
fn partitions_are_refused_where_spark_writes_the_tables() {
    let partitioned = "[tables.Observation]\npartition_by = [\"year\"]\npartition_date = \"effective\"\n[[export]]";
    let found = mistakes(&WITH_SPARK.replace("[[export]]", partitioned));
    let what = if cfg!(feature = "spark") { "CLUSTER BY" } else { "--features spark" };
    assert!(found.iter().any(|mistake| mistake.contains(what)), "{found:?}");
}
