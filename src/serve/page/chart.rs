//! The chart of the last runs: a bar upwards for how long each took, one downwards for the rows that it changed, and
//! between them a mark for how it ended. A mark has a shape and a colour, so that neither is needed alone.

use std::{collections::BTreeMap, time::Duration};

use chrono::SecondsFormat;
use maud::{Markup, html};

use super::words::{count, counted, duration, instant};
use crate::sync::{Outcome, PastRun, PastRuns};

/// Units of the drawing. A screen of 360 px shows them at about half their size.
const SLOT: u64 = 12;
const BAR: u64 = 8;
const UP: u64 = 56;
const MARK: u64 = 16;
const DOWN: u64 = 40;
/// A bar that is not nothing can be seen.
const MIN_BAR: u64 = 2;
/// Few runs are not drawn as wide as many.
const MIN_SLOTS: u64 = 10;

/// The drawing, what it means, and the same as a table.
pub fn trend(id: &str, runs: &PastRuns) -> Markup {
    if runs.iter().len() == 0 {
        return html! { p.quiet { "No run has ended yet." } };
    }
    let longest = runs.iter().map(|run| run.duration).max().unwrap_or_default();
    let most = runs.iter().map(|run| run.changed).max().unwrap_or_default();
    let title = match runs.iter().len() {
        1 => "The last run".to_owned(),
        number => format!("The last {number} runs"),
    };
    html! {
        figure {
            figcaption id={ (id) "-trend" } {
                strong { (title) }
                (legend(runs))
            }
            p.axis { "duration, the longest " (duration(longest)) }
            (drawing(id, runs, &title, longest, most))
            p.axis { "rows changed, the most " (count(most)) @if most > 1 { " (logarithmic)" } }
        }
        details {
            summary { (title) " as a table" }
            (table(&title, runs))
        }
    }
}

fn drawing(id: &str, runs: &PastRuns, title: &str, longest: Duration, most: u64) -> Markup {
    let slots = (runs.iter().len() as u64).max(MIN_SLOTS);
    let (width, height) = (slots * SLOT, UP + MARK + DOWN);
    let ends = counts(runs).into_iter().map(|(end, number)| format!("{number} {}", end.word()));
    let ends = ends.collect::<Vec<_>>().join(", ");
    html! {
        svg.trend viewBox={ "0 0 " (width) " " (height) } width=(width) height=(height) role="img"
            aria-labelledby={ (id) "-title " (id) "-description" } {
            title id={ (id) "-title" } { (title) }
            desc id={ (id) "-description" } {
                (ends) ". The longest took " (duration(longest)) ". "
                "At most " (counted(most, "row")) " changed. A table follows."
            }
            line.base x1="0" x2=(width) y1=(UP) y2=(UP) {}
            line.base x1="0" x2=(width) y1=(UP + MARK) y2=(UP + MARK) {}
            @for (slot, run) in (0..).zip(runs.iter()) {
                (bars(slot * SLOT, run, longest, most))
            }
        }
    }
}

fn bars(left: u64, run: &PastRun, longest: Duration, most: u64) -> Markup {
    let end = End::of(run);
    let up = part_of(linear(run.duration, longest), UP);
    let down = part_of(logarithmic(run.changed, most), DOWN);
    let (x, middle) = (left + (SLOT - BAR) / 2, left + SLOT / 2);
    html! {
        g class=(end.class()) {
            title {
                "run " (run.run) ", " (run.started_at.to_rfc3339_opts(SecondsFormat::Secs, true)) ": " (end.word())
                " after " (duration(run.duration)) ", " (counted(run.changed, "row")) " changed"
            }
            rect.bar x=(x) y=(UP - up) width=(BAR) height=(up) {}
            g transform={ "translate(" (middle) " " (UP + MARK / 2) ")" } { (end.mark()) }
            rect.rows x=(x) y=(UP + MARK) width=(BAR) height=(down) {}
        }
    }
}

/// A thousandth at least of what is not nothing.
fn linear(duration: Duration, longest: Duration) -> u64 {
    let (millis, most) = (duration.as_millis(), longest.as_millis().max(1));
    if duration.is_zero() { 0 } else { u64::try_from(millis * 1000 / most).unwrap_or(1000).max(1) }
}

/// Rows of a first load and of an increment differ by powers of ten.
fn logarithmic(rows: u64, most: u64) -> u64 {
    let log = |rows: u64| f64::from(u32::try_from(rows.min(u64::from(u32::MAX - 1))).unwrap_or(u32::MAX) + 1).ln();
    if rows == 0 {
        return 0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and 1000")]
    let thousandths = (log(rows) / log(most) * 1000.0) as u64;
    thousandths.max(1)
}

fn part_of(thousandths: u64, whole: u64) -> u64 {
    if thousandths == 0 { 0 } else { (thousandths.min(1000) * whole / 1000).max(MIN_BAR) }
}

/// How a run ended, in the order of the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    Complete,
    Partial,
    Failed,
    Stopped,
    Killed,
}

impl End {
    pub fn of(run: &PastRun) -> Self {
        run.outcome.map_or(Self::Killed, Self::of_outcome)
    }

    pub fn of_outcome(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Complete => Self::Complete,
            Outcome::Partial => Self::Partial,
            Outcome::Failed => Self::Failed,
            Outcome::Stopped => Self::Stopped,
        }
    }

    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Partial => "partial",
            Self::Failed => "failed",
            Self::Stopped => "stopped",
            Self::Killed => "killed",
        }
    }

    fn class(self) -> String {
        format!("run {}", self.word())
    }

    /// Around the point 0, 0.
    fn mark(self) -> Markup {
        match self {
            Self::Complete => html! { circle.mark r="3" {} },
            Self::Partial => html! { path.mark d="M0 -4.5 L5 4 H-5 Z" {} },
            Self::Failed => html! { path.stroke d="M-4 -4 L4 4 M4 -4 L-4 4" {} },
            Self::Stopped => html! { rect.mark x="-3.5" y="-3.5" width="7" height="7" {} },
            Self::Killed => html! { circle.stroke r="3.5" {} },
        }
    }

    /// The mark, and the word beside it.
    pub fn shown(self) -> Markup {
        html! {
            span.end {
                svg class=(self.class()) viewBox="-8 -8 16 16" width="16" height="16" aria-hidden="true" { (self.mark()) }
                (self.word())
            }
        }
    }
}

fn counts(runs: &PastRuns) -> BTreeMap<End, usize> {
    let mut counts = BTreeMap::new();
    for run in runs.iter() {
        *counts.entry(End::of(run)).or_default() += 1;
    }
    counts
}

fn legend(runs: &PastRuns) -> Markup {
    html! {
        ul.legend {
            @for (end, number) in counts(runs) {
                li { (number) " " (end.shown()) }
            }
        }
    }
}

/// The newest first.
fn table(title: &str, runs: &PastRuns) -> Markup {
    html! {
        table.stacked role="table" aria-label=(title) {
            thead role="rowgroup" {
                tr role="row" {
                    th role="columnheader" scope="col" { "Run" }
                    th role="columnheader" scope="col" { "Ended" }
                    th role="columnheader" scope="col" { "Began (UTC)" }
                    th role="columnheader" scope="col" { "Mode" }
                    th.number role="columnheader" scope="col" { "Duration" }
                    th.number role="columnheader" scope="col" { "Received" }
                    th.number role="columnheader" scope="col" { "Changed" }
                    th.number role="columnheader" scope="col" { "Quarantined" }
                }
            }
            tbody role="rowgroup" {
                @for run in runs.iter().rev() { (row(run)) }
            }
        }
    }
}

fn row(run: &PastRun) -> Markup {
    let mode = run.mode.map_or_else(|| "unknown".to_owned(), |mode| mode.to_string());
    html! {
        tr role="row" {
            th role="rowheader" scope="row" { (run.run) }
            td role="cell" data-label="Ended" { (End::of(run).shown()) }
            td role="cell" data-label="Began (UTC)" { (instant(run.started_at)) }
            td role="cell" data-label="Mode" { (mode) }
            td.number role="cell" data-label="Duration" { (duration(run.duration)) }
            td.number role="cell" data-label="Received" { (count(run.received)) }
            td.number role="cell" data-label="Changed" { (count(run.changed)) }
            td.number role="cell" data-label="Quarantined" { (count(run.quarantined)) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_high_as_its_part_and_never_invisible() {
        let seconds = Duration::from_secs;
        assert_eq!(part_of(linear(seconds(30), seconds(60)), UP), UP / 2);
        assert_eq!(part_of(linear(seconds(1), seconds(36_000)), UP), MIN_BAR);
        assert_eq!(part_of(linear(seconds(0), seconds(0)), UP), 0);
        assert_eq!(part_of(logarithmic(u64::MAX, u64::MAX), DOWN), DOWN);
        assert_eq!(part_of(logarithmic(999, 999_999), DOWN), DOWN / 2);
        assert_eq!((logarithmic(0, 0), logarithmic(1, 1)), (0, 1000));
    }
}
