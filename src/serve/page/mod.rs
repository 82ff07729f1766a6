//! The status page: what `/health` says, for people. It is made on the server, needs no script, and loads nothing but
//! its style sheet and its icon from this listener.
//!
//! Every text that comes from elsewhere is escaped by maud. The page reloads itself by a header rather than a `meta`
//! element, and only while the reader lets it: WCAG 2.2.1 asks for a way to turn that off.

mod chart;
mod verdict;
mod words;

use std::time::Duration;

use chrono::{DateTime, Utc};
use maud::{DOCTYPE, Markup, html};
use tokio::time::Instant;

use self::{
    chart::{End, trend},
    verdict::{Freshness, Standing, Verdict, freshness},
    words::{count, counted, duration, instant, instant_near},
};
use super::{
    health::{self, ExportHealth, TypeHealth},
    question::AllowedAge,
    view::{ExportView, TypeView, View},
};
use crate::sync::{Progress, Step};

pub const STYLE: &str = include_str!("style.css");

/// Nothing is loaded from elsewhere, nothing runs, nothing is sent, and no page shows this one in a frame.
pub const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; style-src 'self'; img-src 'self'; base-uri 'none'; \
                                           form-action 'none'; frame-ancestors 'none'";

/// Whether the page is to be loaded again after a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    On,
    Off,
}

impl Refresh {
    /// The value of the header `Refresh`, in seconds.
    pub const SECONDS: &str = "30";
    const OFF: &str = "refresh=off";

    /// From the query of the URL; a page for people refuses nothing.
    pub fn of(query: Option<&str>) -> Self {
        if query == Some(Self::OFF) { Self::Off } else { Self::On }
    }
}

/// The page as of now; `instant` is now on the monotonic clock.
pub fn page(view: &View, refresh: Refresh, now: DateTime<Utc>, instant: Instant) -> Markup {
    let health = health::health(view, AllowedAge::OfExport, now, instant);
    let verdict = verdict::of_all(view, &health, health::is_alive(view, instant));
    let exports: Vec<_> = view.exports.iter().filter_map(|of| Some((of, health.exports.get(&of.name)?))).collect();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (verdict.headline) " · fhir-sync" }
                link rel="icon" type="image/svg+xml" href={ "/icon-" (verdict.standing.class()) ".svg" };
                link rel="stylesheet" href="/style.css";
            }
            body {
                header {
                    span.name { "fhir-sync" }
                    span.quiet { "as of " (instant_of_page(now)) }
                }
                main {
                    (headline(&verdict))
                    @if exports.len() > 1 { (overview(&exports)) }
                    @for (number, (export, health)) in exports.iter().enumerate() {
                        (section(&format!("export-{}", number + 1), export, health, now))
                    }
                }
                (footer(refresh))
            }
        }
    }
}

fn instant_of_page(now: DateTime<Utc>) -> Markup {
    html! { time datetime=(now.to_rfc3339()) { (now.format("%-d %b %Y, %H:%M:%S UTC")) } }
}

fn headline(verdict: &Verdict) -> Markup {
    html! {
        div class={ "verdict " (verdict.standing.class()) } {
            (shape(verdict.standing))
            div {
                h1 { (verdict.headline) }
                p { (verdict.detail) }
            }
        }
    }
}

/// Each standing has a shape of its own: nobody needs to tell colours apart.
fn shape(standing: Standing) -> Markup {
    let path = path_of(standing);
    html! {
        svg.shape viewBox="0 0 24 24" width="24" height="24" aria-hidden="true" { path d=(path) fill-rule="evenodd" {} }
    }
}

fn path_of(standing: Standing) -> &'static str {
    match standing {
        Standing::Good => {
            "M12 1a11 11 0 1 0 0 22a11 11 0 1 0 0-22zM10.6 17.2L5.5 12.1l1.7-1.7 3.4 3.4 6.2-6.2 1.7 1.7z"
        }
        Standing::Warning => "M12 1.5L23.5 22H.5zM10.8 9v6.2h2.4V9zM10.8 16.8v2.4h2.4v-2.4z",
        Standing::Loading => "M12 1a11 11 0 1 0 0 22a11 11 0 1 0 0-22zM12 4v8h8a8 8 0 1 1-8-8z",
        Standing::Bad => {
            "M7.5 1h9L23 7.5v9L16.5 23h-9L1 16.5v-9zM8.2 6.5L6.5 8.2 10.3 12l-3.8 3.8 1.7 1.7L12 13.7l3.8 3.8 \
             1.7-1.7L13.7 12l3.8-3.8-1.7-1.7L12 10.3z"
        }
    }
}

/// The icon of the tab says how it stands too. `None` for a name that no page links.
pub fn icon(name: &str) -> Option<Markup> {
    let standings = [Standing::Good, Standing::Warning, Standing::Loading, Standing::Bad];
    let standing = standings.into_iter().find(|standing| name == format!("icon-{}.svg", standing.class()))?;
    let colour = match standing {
        Standing::Good => "#2a8a55",
        Standing::Warning => "#c07c00",
        Standing::Loading => "#3a72c4",
        Standing::Bad => "#cf3d4f",
    };
    Some(html! {
        svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 24 24" {
            path fill=(colour) fill-rule="evenodd" d=(path_of(standing)) {}
        }
    })
}

fn badge(standing: Standing) -> Markup {
    html! { span class={ "badge " (standing.class()) } { (shape(standing)) (standing.word()) } }
}

fn overview(exports: &[(&ExportView, &ExportHealth)]) -> Markup {
    html! {
        nav aria-label="Exports" {
            ul.overview {
                @for (number, (export, health)) in (1..).zip(exports) {
                    li { a href={ "#export-" (number) } { (export.name) } (badge(verdict::of_export(export, health))) }
                }
            }
        }
    }
}

fn section(id: &str, export: &ExportView, health: &ExportHealth, now: DateTime<Utc>) -> Markup {
    html! {
        section id=(id) aria-labelledby={ (id) "-name" } {
            div.head {
                h2 id={ (id) "-name" } { (export.name) }
                (badge(verdict::of_export(export, health)))
            }
            (facts(export, health, now))
            @if export.progress.step != Step::Idle { (running(&export.progress)) }
            @if !export.warnings.is_empty() { (warnings(&export.warnings)) }
            (trend(id, &export.runs))
            (types(export, health))
        }
    }
}

fn facts(export: &ExportView, health: &ExportHealth, now: DateTime<Utc>) -> Markup {
    let seconds = |seconds: Option<u64>| seconds.map(|seconds| duration(Duration::from_secs(seconds)));
    html! {
        dl.facts {
            div {
                dt { "Age of the data" }
                dd {
                    @match seconds(health.data_age_seconds) {
                        Some(age) => { strong { (age) } },
                        None => { strong { "unknown" } },
                    }
                    span { "at most " (duration(export.max_age)) }
                }
            }
            div {
                dt { "Last complete run" }
                dd {
                    @match (seconds(health.age_seconds), export.last_complete) {
                        (Some(age), Some(last)) => { strong { (age) " ago" } span { (instant_near(last.at, now)) } },
                        (None, Some(last)) => { strong { "in the future" } span { (instant(last.at)) } },
                        _ => { strong { "none yet" } },
                    }
                }
            }
            div {
                dt { "Last run" }
                dd {
                    @match export.last_outcome {
                        Some(outcome) => { strong { (End::of_outcome(outcome).shown()) } },
                        None => { strong { "none yet" } },
                    }
                    @if export.failures_in_a_row > 0 {
                        span { (counted(u64::from(export.failures_in_a_row), "run")) " in a row not complete" }
                    }
                }
            }
            div {
                dt { "Next run" }
                dd {
                    @match export.next_run_at {
                        Some(next) => {
                            strong { "in " (duration((next - now).to_std().unwrap_or_default())) }
                            span { (instant_near(next, now)) }
                        },
                        None => { strong { "not scheduled" } },
                    }
                }
            }
        }
    }
}

fn running(progress: &Progress) -> Markup {
    html! {
        div.running {
            p {
                strong { "Running: " } (progress.step)
                @if let Some(retry) = progress.retrying() { ", " (retry) }
            }
            @if progress.step == Step::Streaming && progress.files > 0 {
                progress max=(progress.files) value=(progress.files_done) aria-label="Files that have been read" {}
                p.quiet {
                    (count(progress.files_done)) " of " (counted(progress.files, "file")) ", "
                    (counted(progress.lines, "line")) ", " (indicatif::HumanBytes(progress.bytes))
                }
            }
        }
    }
}

fn warnings(warnings: &[String]) -> Markup {
    html! {
        div.warnings {
            h3 { (shape(Standing::Warning)) (counted(warnings.len() as u64, "warning")) " of the last run" }
            ul {
                @for warning in warnings { li { (warning) } }
            }
        }
    }
}

fn types(export: &ExportView, health: &ExportHealth) -> Markup {
    html! {
        table.stacked.types role="table" aria-label={ "Resource types of " (export.name) } {
            thead role="rowgroup" {
                tr role="row" {
                    th role="columnheader" scope="col" { "Type" }
                    th role="columnheader" scope="col" { "Data" }
                    th.number role="columnheader" scope="col" { "Age" }
                    th.number role="columnheader" scope="col" { "Rows" }
                    th role="columnheader" scope="col" { "Watermark (UTC)" }
                    th role="columnheader" scope="col" { "Last end" }
                }
            }
            tbody role="rowgroup" {
                @for of in &export.types {
                    @if let Some(health) = health.types.get(&of.name) { (row(export, of, health)) }
                }
            }
        }
    }
}

fn row(export: &ExportView, of: &TypeView, health: &TypeHealth) -> Markup {
    let (standing, word) = match freshness(export, of, health) {
        Freshness::Fresh => (Standing::Good, "fresh"),
        Freshness::TooOld => (Standing::Bad, "too old"),
        Freshness::NoData => (Standing::Bad, "none"),
        Freshness::Loading => (Standing::Loading, "not yet"),
        Freshness::Unconfirmed => (Standing::Warning, "unconfirmed"),
    };
    let age = health.data_age_seconds.map(|seconds| duration(Duration::from_secs(seconds)));
    html! {
        tr role="row" {
            th role="rowheader" scope="row" { (of.name) }
            td role="cell" data-label="Data" { span class={ "state " (standing.class()) } { (shape(standing)) (word) } }
            td.number role="cell" data-label="Age" { (age.as_deref().unwrap_or("–")) }
            td.number role="cell" data-label="Rows" { (of.rows.map_or_else(|| "–".to_owned(), count)) }
            td role="cell" data-label="Watermark (UTC)" {
                @match of.watermark { Some(watermark) => { (instant(watermark)) }, None => { "–" } }
            }
            td role="cell" data-label="Last end" { (of.last_end.as_deref().unwrap_or("–")) }
        }
    }
}

fn footer(refresh: Refresh) -> Markup {
    html! {
        footer {
            p {
                "fhir-sync " (env!("CARGO_PKG_VERSION")) ". All times are UTC. "
                @match refresh {
                    Refresh::On => {
                        "This page reloads every " (Refresh::SECONDS) " s. "
                        a href={ "/?" (Refresh::OFF) } { "Stop reloading" }
                    },
                    Refresh::Off => { "This page does not reload. " a href="/" { "Reload every " (Refresh::SECONDS) " s" } },
                }
            }
            nav aria-label="Endpoints" {
                a href="/health" { "/health" }
                a href="/metrics" { "/metrics" }
                a href="/livez" { "/livez" }
                a href="/readyz" { "/readyz" }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::view::Moment, *};
    use crate::{
        fhir::parse_instant,
        sync::{Outcome, PastRuns},
    };

    fn at(text: &str) -> DateTime<Utc> {
        parse_instant(text).unwrap()
    }

    /// An export with one type, whose data are of ten o'clock.
    fn view() -> View {
        let (ten, start) = (at("2026-11-20T10:00:00Z"), Instant::now());
        let of = TypeView {
            name: "Patient".to_owned(),
            data: Some(Moment::new(ten, ten, start)),
            unconfirmed: None,
            last_end: Some("committed".to_owned()),
            watermark: Some(ten),
            rows: Some(7664),
        };
        let export = ExportView {
            name: "all".to_owned(),
            last_complete: of.data,
            before_migration: None,
            types: vec![of],
            max_age: Duration::from_hours(2),
            recheck_absent: Duration::from_hours(24),
            last_outcome: Some(Outcome::Complete),
            failures_in_a_row: 0,
            warnings: Vec::new(),
            next_run_at: Some(at("2026-11-20T11:00:00Z")),
            progress: Progress::default(),
            runs: PastRuns::default(),
        };
        View { ready: true, heartbeat: start, hangs: false, exports: vec![export] }
    }

    fn shown(view: &View, now: &str) -> String {
        page(view, Refresh::On, at(now), view.heartbeat).into_string()
    }

    #[test]
    fn the_headline_says_what_health_says() {
        let mut view = view();
        assert!(shown(&view, "2026-11-20T10:12:00Z").contains("<h1>All data are fresh</h1>"));
        assert!(shown(&view, "2026-11-20T12:12:00Z").contains("<h1>The data of Patient are too old</h1>"));
        view.exports[0].warnings = vec!["one".to_owned(), "two".to_owned()];
        assert!(shown(&view, "2026-11-20T10:12:00Z").contains("<h1>All data are fresh, with 2 warnings</h1>"));
        (view.exports[0].types[0].data, view.exports[0].last_complete) = (None, None);
        assert!(shown(&view, "2026-11-20T10:12:00Z").contains("<h1>Patient has no data</h1>"));
        view.exports[0].progress.step = Step::Planning;
        assert!(shown(&view, "2026-11-20T10:12:00Z").contains("<h1>The first load is in progress</h1>"));
        view.exports[0].failures_in_a_row = 1;
        assert!(shown(&view, "2026-11-20T10:12:00Z").contains("<h1>Patient has no data</h1>"));
    }

    #[test]
    fn a_loop_that_hangs_is_the_headline() {
        let view = view();
        let later = view.heartbeat + Duration::from_mins(5);
        let page = page(&view, Refresh::On, at("2026-11-20T10:12:00Z"), later).into_string();
        assert!(page.contains("<h1>The daemon hangs</h1>"), "{page}");
    }

    #[test]
    fn a_type_has_its_rows_watermark_age_and_end() {
        let page = shown(&view(), "2026-11-20T10:12:00Z");
        for cell in [">7,664<", ">12 min<", ">20 Nov 2026, 10:00</time>", ">committed<", "in 48 min"] {
            assert!(page.contains(cell), "{cell}: {page}");
        }
    }

    #[test]
    fn no_text_becomes_part_of_the_page() {
        let hostile = "<script>alert(1)</script><img src=x onerror='y'>\"&";
        let mut view = view();
        view.exports[0].name = hostile.to_owned();
        view.exports[0].warnings = vec![hostile.to_owned()];
        view.exports[0].types[0].last_end = Some(hostile.to_owned());
        view.exports[0].types[0].name = hostile.to_owned();
        view.exports[0].progress.step = Step::Waiting { polls: 1, server_says: Some(hostile.to_owned()) };
        for now in ["2026-11-20T10:12:00Z", "2026-11-20T12:12:00Z"] {
            let page = shown(&view, now);
            assert!(!page.contains("<script") && !page.contains("<img") && !page.contains("'y'>\"&"), "{page}");
            assert!(page.contains("&lt;script&gt;"), "it is shown as text");
        }
    }

    #[test]
    fn there_is_an_icon_for_each_standing_and_no_other() {
        assert!(icon("icon-good.svg").unwrap().into_string().ends_with("</path></svg>"));
        assert!(["icon-bad.svg", "icon-warning.svg", "icon-loading.svg"].iter().all(|name| icon(name).is_some()));
        assert!(icon("favicon.ico").is_none() && icon("icon-.svg").is_none());
    }
}
