use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Daemon, Made, Setup, eventually, ndjson};

#[tokio::test]
async fn the_status_page_shows_the_runs_of_the_ledger_and_the_rows_of_the_tables() {
    let setup = Setup::new().await;
    setup.complete().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let page = eventually("what was read in the background", async || {
        let page = daemon.get("/").await.1;
        let is_read = page.contains("The last 2 runs") && page.contains("data-label=\"Rows\">5<");
        is_read.then_some(page)
    })
    .await;
    assert!(page.contains("<h1>All data are fresh</h1>"), "{page}");
    assert!(page.contains("data-label=\"Rows\">4<"), "four observations: {page}");
    assert!(page.contains("run 1, ") && page.contains("9 rows changed"), "{page}");
    assert!(page.contains("run 2, ") && page.contains("0 rows changed"), "{page}");
    assert!(page.contains("2 complete. The longest took"), "the drawing has a text: {page}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_run_of_the_daemon_is_on_the_page_with_its_warnings() {
    let setup = Setup::new().await;
    let patients: Vec<Value> = (1..=200).map(|id| json!({"resourceType": "Patient", "id": format!("p{id}")})).collect();
    let lines = format!("{}<script>alert('DUPONT')</script>\n", ndjson(&patients));
    let observations = ndjson(&[json!({"resourceType": "Observation", "id": "o1", "status": "final", "code": {}})]);
    Made::default().output("Patient", None, &lines).output("Observation", None, &observations).serve(&setup);
    let daemon = Daemon::start(&setup, &[]).await;
    let page = eventually("the run", async || {
        let page = daemon.get("/").await.1;
        (page.contains("The last run") && page.contains("data-label=\"Rows\">200<")).then_some(page)
    })
    .await;
    assert!(page.contains("<h1>All data are fresh, with 1 warning</h1>"), "{page}");
    assert!(page.contains("quarantine") && page.contains("1 partial."), "{page}");
    assert!(!page.contains("DUPONT") && !page.contains("<script"), "nothing of a line is on it: {page}");
    daemon.stop().await;
}

#[tokio::test]
async fn a_browser_may_load_nothing_for_the_page_but_its_style_and_its_icon() {
    let setup = Setup::new().await;
    setup.complete().await;
    let daemon = Daemon::start(&setup, &[]).await;
    let response = daemon.response(Method::GET, "/").await;
    let header = |name: &str| response.headers()[name].to_str().unwrap().to_owned();
    assert_eq!(header("content-type"), "text/html; charset=utf-8");
    let policy = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; form-action 'none'; \
                  frame-ancestors 'none'";
    assert_eq!(header("content-security-policy"), policy);
    assert_eq!((header("x-content-type-options"), header("referrer-policy")), ("nosniff".into(), "no-referrer".into()));
    assert_eq!((header("refresh"), header("cache-control")), ("30".into(), "no-store".into()));
    let page = response.text().await.unwrap();
    assert!(!page.contains("style=") && !page.contains("<script") && !page.contains("://"), "{page}");
    let (style, icon) = (daemon.response(Method::GET, "/style.css").await, "/icon-good.svg");
    assert_eq!(style.headers()["content-type"], "text/css; charset=utf-8");
    assert!(page.contains(icon));
    assert_eq!(daemon.response(Method::GET, icon).await.headers()["content-type"], "image/svg+xml");
    let still = daemon.response(Method::GET, "/?refresh=off").await;
    assert!(!still.headers().contains_key("refresh"), "the reader may turn it off");
    daemon.stop().await;
}
