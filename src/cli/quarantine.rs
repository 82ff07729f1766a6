//! `quarantine`: the lines that are not resources. To look at them needs neither key nor lock; they are replayed and
//! purged by the service, where it runs. The line itself is printed only by `show`.

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{ArgGroup, Args, Subcommand};

use super::{
    ConfigFile,
    by_hand::{ByHand, unexpected, with_key},
    exit::{Exit, FAILED, failed, misconfigured},
    look::{self, Looking, day_and_time},
    show::counted,
};
use crate::{
    config::{self, Config},
    control::{self, Answer, ReplayedLines, Work, the_one},
    fhir::ResourceType,
    sync::{Counts, QuarantineRow, Root, chain},
    telemetry,
};

#[derive(Args, Debug)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand, Debug)]
enum Action {
    /// Lists the lines with their places and reasons, without their content
    List(List),
    /// Shows one line, with its content
    Show(Show),
    /// Upserts the lines that are resources now, or a corrected one
    Replay(Replay),
    /// Removes lines from the quarantine
    Purge(Purge),
}

#[derive(Args, Debug)]
struct List {
    #[command(flatten)]
    looking: Looking,
    /// Only lines from files of this resource type
    #[arg(long = "type", value_name = "TYPE")]
    resource_type: Option<ResourceType>,
    /// Only lines with this reason, such as not-json
    #[arg(long, value_name = "WORD")]
    reason: Option<String>,
    /// Only lines that this run was the first to receive
    #[arg(long, value_name = "N")]
    run: Option<u64>,
}

#[derive(Args, Debug)]
struct Show {
    #[command(flatten)]
    looking: Looking,
    /// The beginning of an id
    #[arg(value_name = "ID")]
    id: String,
}

#[derive(Args, Debug)]
struct Replay {
    #[command(flatten)]
    config: ConfigFile,
    /// Beginnings of ids; without any: all lines
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// A file with the corrected resource, for the one line that is named; - is the standard input
    #[arg(long, value_name = "FILE", requires = "ids")]
    file: Option<PathBuf>,
}

#[derive(Args, Debug)]
#[command(group(ArgGroup::new("which").args(["ids", "older_than", "all"]).required(true)))]
struct Purge {
    #[command(flatten)]
    config: ConfigFile,
    /// Beginnings of ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    /// All lines that were first seen longer ago, such as 30days
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// All lines
    #[arg(long)]
    all: bool,
}

pub(super) async fn run(arguments: Arguments) -> Result<(), Exit> {
    match arguments.action {
        Action::List(arguments) => list(&arguments).await,
        Action::Show(arguments) => show(&arguments).await,
        Action::Replay(arguments) => replay(arguments).await,
        Action::Purge(arguments) => purge(arguments).await,
    }
}

async fn list(arguments: &List) -> Result<(), Exit> {
    let (_, root) = arguments.looking.open()?;
    let mut rows = rows(&root).await?;
    rows.retain(|row| {
        arguments.resource_type.is_none_or(|of| row.resource_type.as_deref() == Some(of.as_str()))
            && arguments.reason.as_ref().is_none_or(|reason| row.reason == *reason)
            && arguments.run.is_none_or(|run| row.run == run)
    });
    if arguments.looking.json {
        return look::print_json(&rows);
    }
    look::print(&if rows.is_empty() { "no such line in the quarantine\n".to_owned() } else { table(&rows) })
}

async fn show(arguments: &Show) -> Result<(), Exit> {
    let (config, root) = arguments.looking.open()?;
    let row = one_of(rows(&root).await?, &arguments.id).map_err(|reason| failed(&reason))?;
    let mut read = None;
    let wanted = [row.id.clone()].into();
    root.read_quarantine(&wanted, &mut |row| read = Some(row)).await.map_err(|error| failed(&chain(&error)))?;
    let Some(with_line) = read else { return Err(failed("the line was purged at this moment")) };
    let line = config.sync.quarantine_policy.line_of(&with_line);
    let text = line.as_ref().map(|line| String::from_utf8_lossy(line));
    if arguments.looking.json {
        let mut value = serde_json::to_value(&row).map_err(|error| failed(&error.to_string()))?;
        value["text"] = text.map_or(serde_json::Value::Null, Into::into);
        return look::print_json(&value);
    }
    let of_row = |(name, value): (&str, String)| format!("{name:17} {value}\n");
    let head: String = facts(&row).into_iter().map(of_row).collect();
    let text = text.map_or_else(|reason| format!("(the line cannot be shown: {reason})"), |text| printable(&text));
    look::print(&format!("{head}\n{text}\n"))
}

async fn replay(arguments: Replay) -> Result<(), Exit> {
    let path = arguments.config.path;
    let by_hand = open(&path, |_| with_key(&path)).await?;
    // Not before: the standard input is read by the process that does the work, or asks for it.
    let corrected = arguments.file.map(|file| read(&file)).transpose()?;
    let mut ids = arguments.ids;
    let which = match (corrected, ids.len()) {
        (Some(text), 1) => control::Replay::Corrected { id: ids.remove(0), text },
        (Some(_), _) => return Err(failed("--file corrects one line; name one id")),
        (None, 0) => control::Replay::All,
        (None, _) => control::Replay::Lines(ids),
    };
    let is_chosen = !matches!(which, control::Replay::All);
    let replayed = by_hand.work(Work::Replay(which)).await;
    by_hand.close().await;
    let Answer::Replayed(replayed) = replayed? else { return Err(unexpected()) };
    print_replayed(&replayed);
    let has_failed = replayed.tables.iter().any(|(_, result)| result.is_err());
    if has_failed || (is_chosen && !replayed.left.is_empty()) { Err(FAILED) } else { Ok(()) }
}

async fn purge(arguments: Purge) -> Result<(), Exit> {
    let which = match arguments.older_than {
        Some(age) => control::Purge::OlderThan(age),
        None if arguments.all => control::Purge::All,
        None => control::Purge::Lines(arguments.ids),
    };
    let by_hand = open(&arguments.config.path, Ok).await?;
    let purged = by_hand.work(Work::Purge(which)).await;
    by_hand.close().await;
    let Answer::Purged(purged) = purged? else { return Err(unexpected()) };
    let lines = counted(purged, "line");
    say!("{lines} purged; the vacuum deletes the files that held them");
    Ok(())
}

async fn open(path: &Path, own: impl FnOnce(Config) -> Result<Config, Exit>) -> Result<ByHand, Exit> {
    let (config, _) = config::check(path).map_err(misconfigured)?;
    telemetry::start(&config.log);
    ByHand::open(config, own).await
}

fn read(file: &Path) -> Result<String, Exit> {
    let mut text = String::new();
    let read = match file.to_str() {
        Some("-") => io::stdin().read_to_string(&mut text),
        _ => File::open(file).and_then(|mut file| file.read_to_string(&mut text)),
    };
    read.map_err(|error| failed(&format!("{} cannot be read: {error}", file.display())))?;
    Ok(text)
}

fn print_replayed(replayed: &ReplayedLines) {
    for (resource_type, result) in &replayed.tables {
        match result {
            Ok(Counts { inserted, updated, unchanged, stale, duplicate, .. }) => {
                say!(
                    "{resource_type}: {inserted} inserted, {updated} updated, {unchanged} unchanged, {stale} stale, \
                     {duplicate} duplicate"
                );
            }
            Err(error) => say!("{resource_type}: {error}"),
        }
    }
    for (id, reason) in &replayed.left {
        say!("{} stays: {reason}", short(id));
    }
    let lines = counted(replayed.lines, "line");
    say!("{lines} replayed, {} stay in the quarantine", replayed.left.len());
}

async fn rows(root: &Root) -> Result<Vec<QuarantineRow>, Exit> {
    root.quarantine().await.map_err(|error| failed(&chain(&error)))
}

/// The one row whose id begins so.
fn one_of(rows: Vec<QuarantineRow>, id: &str) -> Result<QuarantineRow, String> {
    let whole = the_one(rows.iter().map(|row| row.id.as_str()), id)?.to_owned();
    rows.into_iter().find(|row| row.id == whole).ok_or(whole)
}

/// A server may send anything; what would change the terminal is written out.
fn printable(text: &str) -> String {
    let is_plain = |char: char| !char.is_control() || matches!(char, '\t');
    text.chars().fold(String::with_capacity(text.len()), |mut shown, char| {
        if is_plain(char) {
            shown.push(char);
        } else {
            shown.extend(char.escape_default());
        }
        shown
    })
}

fn or_dash(text: Option<&String>) -> String {
    text.cloned().unwrap_or_else(|| "-".to_owned())
}

fn facts(row: &QuarantineRow) -> Vec<(&'static str, String)> {
    vec![
        ("id", row.id.clone()),
        ("export", row.export.clone()),
        ("run", row.run.to_string()),
        ("first seen (UTC)", day_and_time(row.first_seen)),
        ("type", or_dash(row.resource_type.as_ref())),
        ("file", row.file.clone()),
        ("line", row.line.to_string()),
        ("byte offset", row.byte_offset.to_string()),
        ("bytes", row.bytes.to_string()),
        ("reason", row.reason.clone()),
        ("detail", row.detail.clone()),
        ("kept", row.form.clone()),
        ("replayed (UTC)", day_and_time(row.replayed_at)),
    ]
}

/// Enough of an id to name one line of a million.
const SHORT_ID: usize = 12;

fn short(id: &str) -> String {
    id.chars().take(SHORT_ID).collect()
}

fn table(rows: &[QuarantineRow]) -> String {
    let cells = rows.iter().map(|row| {
        [
            short(&row.id),
            day_and_time(row.first_seen),
            row.run.to_string(),
            or_dash(row.resource_type.as_ref()),
            row.bytes.to_string(),
            row.replayed_at.map_or_else(|| row.form.clone(), |_| "replayed".to_owned()),
            format!("{}, line {}", row.file, row.line),
            row.detail.clone(),
        ]
    });
    look::columns(&["id", "first seen (UTC)", "run", "type", "bytes", "kept", "place", "reason"], cells)
}
