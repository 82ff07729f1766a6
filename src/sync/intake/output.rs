//! One file of resources. Each line goes to the change set of the type that it states.
//!
//! The lines of a good file are decoded as they are. Only what the decoder of the file's type gives back is looked at
//! again: lines of other types, what the server says about the file, headers of organized files (rule 80), envelopes,
//! and lines that are no resources, which alone go to the quarantine.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::Ordering},
};

use serde::Deserialize;

use super::{
    Context, Holds, LineCounts, Remark,
    envelope::{unpack, unpack_file_of_binaries},
    outcome::{HeldBy, Outcomes},
    stream::{Reader, stream},
    tally::Finished,
};
use crate::{
    export::{File, FileKind},
    fhir::{Judgement, ResourceType, judge},
    resource::{BadLine, Line, LineTooLong, Reason, stated_type, tag_subsetted},
    sync::{
        Error, Recovery,
        blocking::blocking,
        chain,
        error::{Actor, JobFate},
        events,
        gap::Gap,
        recovery,
    },
    table::OutputIndex,
};

/// One file while it is read.
struct Output {
    index: OutputIndex,
    outcomes: Outcomes,
    counts: Mutex<FileCounts>,
}

#[derive(Default)]
struct FileCounts {
    lines: LineCounts,
    rows: u64,
    /// Lines that stand for no resource: headers and envelopes.
    without_resource: u64,
    /// Lines that were in envelopes.
    unpacked: u64,
    /// What is to be said of the first line that is too long.
    too_long: Option<String>,
    /// Types that other files bring, and this one too.
    rerouted_to: BTreeSet<ResourceType>,
    /// A line states a type that the export asks for, whatever else is wrong with it.
    has_wanted: bool,
}

/// Where lines are from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    File,
    /// An envelope in an envelope is not opened.
    Envelope,
}

/// Reads the file to its end. An error is kept with its type.
pub async fn read(context: Arc<Context>, file: File, index: u32) -> Vec<Remark> {
    let intake = file.kind.resource_type().and_then(|resource_type| context.intakes.get(&resource_type));
    let output = Arc::new(Output {
        index: OutputIndex(index),
        outcomes: Outcomes::new(HeldBy::Warnings),
        counts: Mutex::default(),
    });
    // Nothing more is fetched for a type that has failed.
    let is_lost = intake.is_some_and(|intake| {
        let tally = &mut *intake.tally();
        let is_lost = tally.failure.is_some();
        tally.files_left -= u64::from(is_lost);
        is_lost
    });
    if is_lost {
        context.has_unread.store(true, Ordering::Relaxed);
        context.progress.update(|progress| progress.files_done += 1);
        return Vec::new();
    }
    let result = stream(&context, &file, Arc::clone(&output)).await;
    context.progress.update(|progress| progress.files_done += 1);
    let failure = result.as_ref().err();
    let remarks = output.remarks(&file, failure);
    let (Some(resource_type), Some(intake)) = (file.kind.resource_type(), intake) else {
        return output.without_type(&context, &file, failure, remarks);
    };
    let finished = if remarks.is_empty() { output.finished(&context, &file) } else { None };
    if result.is_err() {
        context.has_unread.store(true, Ordering::Relaxed);
    }
    let is_last = {
        let tally = &mut *intake.tally();
        tally.lines += output.counts().lines;
        tally.end(result, finished)
    };
    if is_last {
        // Frees the memory of the type's open data files for the types that still arrive.
        let flushing = Arc::clone(&context);
        blocking(move || flushing.intakes.get(&resource_type).map(super::Intake::flush)).await;
    }
    remarks
}

impl Reader for Output {
    fn take(&self, context: &Context, file: &File, lines: Vec<Line>) -> Result<(), Error> {
        if let [line] = lines.as_slice()
            && line.number == 1
            && file.kind.resource_type() == Some(ResourceType::BINARY)
            && let Some(lines) = unpack_file_of_binaries(line, file, context.max_line_bytes)
        {
            return self.take_envelope(context, file, lines);
        }
        self.take_lines(context, file, lines, Place::File)
    }

    /// They are not kept, so the watermark must not pass them.
    fn take_too_long(&self, context: &Context, file: &File, lines: Vec<LineTooLong>) -> Result<(), Error> {
        {
            let counts = &mut *self.counts();
            counts.lines.quarantined += lines.len() as u64;
            counts.too_long = lines.first().map(ToString::to_string);
        }
        context.quarantine_places(file.kind.resource_type(), file, &lines)
    }

    fn counted(&self, lines: u64, _announced: u64) -> u64 {
        let counts = self.counts();
        (lines + counts.unpacked).saturating_sub(counts.without_resource)
    }
}

impl Output {
    fn counts(&self) -> MutexGuard<'_, FileCounts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_lines(&self, context: &Context, file: &File, lines: Vec<Line>, place: Place) -> Result<(), Error> {
        let others = match file.kind.resource_type() {
            Some(resource_type) => self.decode(context, resource_type, lines)?,
            None => lines.into_iter().map(stated).collect(),
        };
        if others.is_empty() { Ok(()) } else { self.sort(context, file, others, place) }
    }

    /// Lines that were in an envelope.
    fn take_envelope(&self, context: &Context, file: &File, lines: Vec<Line>) -> Result<(), Error> {
        {
            let counts = &mut *self.counts();
            counts.without_resource += 1;
            counts.unpacked += lines.len() as u64;
        }
        self.take_lines(context, file, lines, Place::Envelope)
    }

    /// The lines that are not rows of this type.
    fn decode(
        &self,
        context: &Context,
        resource_type: ResourceType,
        mut lines: Vec<Line>,
    ) -> Result<Vec<BadLine>, Error> {
        let Some(intake) = context.intakes.get(&resource_type) else { return Ok(Vec::new()) };
        if context.subsetted.contains(&resource_type) {
            tag_subsetted(&mut lines, resource_type);
        }
        let decoded = intake.decoder.decode(&lines)?;
        self.counts().rows += decoded.keys.len() as u64;
        context.dates.see(resource_type, &decoded.keys);
        intake.push(self.index, decoded.keys, decoded.rows)?;
        Ok(decoded.bad)
    }

    /// Gives each line to where it belongs.
    fn sort(&self, context: &Context, file: &File, others: Vec<BadLine>, place: Place) -> Result<(), Error> {
        let mut rerouted: BTreeMap<ResourceType, Vec<Line>> = BTreeMap::new();
        let mut bad = Vec::new();
        for other in others {
            match Kind::of(&other, file, context) {
                Kind::Row(of) => rerouted.entry(of).or_default().push(other.line),
                Kind::Outcome => {
                    let judgement = judge(&other.line.bytes);
                    let is_error = !matches!(judgement, Judgement::Information(_));
                    self.outcomes.add(context, &file.name, judgement);
                    let lines = &mut self.counts().lines;
                    lines.outcomes += 1;
                    lines.errors += u64::from(is_error);
                }
                Kind::Header => self.counts().without_resource += 1,
                Kind::Envelope if place == Place::File => match unpack(&other.line, context.max_line_bytes) {
                    Ok(lines) => self.take_envelope(context, file, lines)?,
                    Err(reason) => bad.push(BadLine { line: other.line, reason }),
                },
                Kind::NotWanted => {
                    self.counts().lines.not_wanted += 1;
                    if let Reason::OtherType { found: Some(of) } = other.reason
                        && context.settled.contains(&of)
                    {
                        context.other_files().missed.insert(of);
                        self.counts().has_wanted = true;
                    }
                }
                Kind::Envelope | Kind::NoResource => bad.push(other),
            }
        }
        for (of, lines) in rerouted {
            bad.extend(self.reroute(context, file, of, lines)?);
        }
        if !bad.is_empty() && file.kind.resource_type().is_none() {
            context.other_files().bad.insert(None);
        }
        self.counts().lines.quarantined += bad.len() as u64;
        context.quarantine(file.kind.resource_type(), file, &bad)
    }

    /// Brings lines to the table of the type that they state. What of them is no resource comes back.
    fn reroute(
        &self,
        context: &Context,
        file: &File,
        of: ResourceType,
        lines: Vec<Line>,
    ) -> Result<Vec<BadLine>, Error> {
        let received = lines.len() as u64;
        {
            let counts = &mut *self.counts();
            counts.rerouted_to.insert(of);
            counts.has_wanted = true;
        }
        if file.kind.resource_type().is_some() {
            context.is_mixed.store(true, Ordering::Relaxed);
        }
        let Some(intake) = context.intakes.get(&of) else { return Ok(Vec::new()) };
        let bad = match self.decode(context, of, lines) {
            Ok(bad) => bad,
            Err(Error::Stopped) => return Err(Error::Stopped),
            // It is the other type that lacks rows.
            Err(error) => {
                intake.tally().failure.get_or_insert(error);
                return Ok(Vec::new());
            }
        };
        if !bad.is_empty() {
            context.other_files().bad.insert(Some(of));
        }
        let rows = received - bad.len() as u64;
        let lines = &mut intake.tally().lines;
        lines.rerouted += rows;
        // Where the manifest states types, the type's own file may be missing.
        let is_own = file.kind == FileKind::Untyped && !context.states_types;
        lines.unfiled += if is_own { rows } else { 0 };
        Ok(bad)
    }

    /// The file need not be read again, once its rows are committed. What the server says in it holds watermarks, and
    /// rows of other types are committed at another time, or not taken yet: such a file is read again.
    fn finished(&self, context: &Context, file: &File) -> Option<Finished> {
        let counts = self.counts();
        let is_plain = counts.rerouted_to.is_empty() && counts.lines.outcomes == 0 && counts.lines.not_wanted == 0;
        let identity = context.identities.get(&file.id).filter(|_| is_plain)?;
        let LineCounts { quarantined, .. } = counts.lines;
        Some(Finished { identity: identity.clone(), lines: counts.rows + counts.lines.without_row(), quarantined })
    }

    /// What remains to be said of a file that is of no type that FHIR knows: it may concern every type, or none.
    fn without_type(
        &self,
        context: &Context,
        file: &File,
        failure: Option<&Error>,
        remarks: Vec<Remark>,
    ) -> Vec<Remark> {
        let is_ignored = self.is_ignored(file, failure);
        let has_errors = self.counts().lines.errors > 0;
        let other_files = &mut *context.other_files();
        // What the outcomes name is concerned, wherever they are.
        let (holding, ignored): (Vec<_>, Vec<_>) =
            remarks.into_iter().partition(|remark| !is_ignored || matches!(remark.holds, Holds::Types(_)));
        if !ignored.is_empty() {
            other_files.gap.get_or_insert(Gap::UnknownFile);
        } else if has_errors {
            other_files.gap.get_or_insert(Gap::AcceptedErrors);
        }
        other_files.ignored.extend(ignored.into_iter().map(|Remark { text, .. }| {
            format!(
                "{text}; FHIR does not know the type of the file, and it has nothing that was asked for: it holds \
                     no watermark"
            )
        }));
        holding
    }

    /// A file of a type that FHIR does not know concerns nobody, until a line says otherwise. Where the next run may read
    /// more of it, that is not known yet.
    fn is_ignored(&self, file: &File, failure: Option<&Error>) -> bool {
        let passes = Recovery { acts: Actor::NextRun, job: JobFate::Kept };
        let has_more = |error: &Error| matches!(error, Error::CutLine { .. }) || recovery(error) == passes;
        file.kind == FileKind::Unknown && !failure.is_some_and(has_more) && !self.counts().has_wanted
    }

    /// What the operator should know of the file, when it has ended.
    fn remarks(&self, file: &File, failure: Option<&Error>) -> Vec<Remark> {
        let stays = if self.is_ignored(file, failure) { "" } else { ", and the watermark stays" };
        let counts = self.counts();
        let LineCounts { quarantined, not_wanted, outcomes, .. } = counts.lines;
        if !counts.rerouted_to.is_empty() || not_wanted > 0 {
            let to = events::list(&counts.rerouted_to);
            tracing::warn!(file = file.name, to, not_wanted, "the file has lines of other types than its own");
        }
        let mut remarks = Vec::from_iter(self.outcomes.remark(&file.name, file.kind.resource_type()));
        let others = quarantined + not_wanted;
        let lines = counts.rows + others + outcomes;
        // In a file without a type, lines that nobody wants are expected.
        let misplaced = if file.kind.resource_type().is_some() { others } else { quarantined };
        if let Some(too_long) = &counts.too_long {
            let text = format!("{}: {too_long}; it was not kept{stays}", file.name);
            remarks.push(Remark::hold(Holds::of(file.kind.resource_type()), text));
        }
        if misplaced * 2 > lines {
            let text = format!("{}: {misplaced} of {lines} lines are not its resources, more than half", file.name);
            remarks.push(Remark::hold(Holds::of(file.kind.resource_type()), text));
        }
        if file.kind.resource_type().is_none() && quarantined > 0 {
            let are =
                if quarantined == 1 { "line is not a resource; it is" } else { "lines are not resources; they are" };
            let text = format!("{}: {quarantined} {are} in quarantine", file.name);
            remarks.push(Remark { text, holds: Holds::Nothing });
        }
        // Otherwise its own type fails.
        if let Some(error) = failure.filter(|_| file.kind.resource_type().is_none()) {
            remarks.push(Remark::hold(Holds::Everything, format!("rows may be missing: {}", chain(error))));
        }
        remarks
    }
}

/// What a line is if it is not a row of the file's type.
enum Kind {
    /// A resource of a type that is wanted.
    Row(ResourceType),
    /// What the server says about the file (rule 74).
    Outcome,
    /// The beginning of a block of an organized file.
    Header,
    Envelope,
    /// A resource of a type that nobody asked for.
    NotWanted,
    NoResource,
}

impl Kind {
    fn of(line: &BadLine, file: &File, context: &Context) -> Self {
        let Reason::OtherType { found } = line.reason else { return Self::NoResource };
        match found {
            Some(ResourceType::OPERATION_OUTCOME) => Self::Outcome,
            Some(ResourceType::PARAMETERS) if is_header(&line.line) => Self::Header,
            Some(ResourceType::BINARY) if file.kind.resource_type().is_some() => Self::Envelope,
            Some(found) if context.intakes.contains_key(&found) => Self::Row(found),
            Some(ResourceType::BINARY) => Self::Envelope,
            Some(_) => Self::NotWanted,
            // In a file of a known type, a type that FHIR does not know is a mistake.
            None if file.kind.resource_type().is_some() => Self::NoResource,
            None => Self::NotWanted,
        }
    }
}

fn is_header(line: &Line) -> bool {
    #[derive(Deserialize)]
    struct Parameters {
        parameter: Vec<Parameter>,
    }
    #[derive(Deserialize)]
    struct Parameter {
        name: String,
    }
    let parameters = serde_json::from_slice::<Parameters>(&line.bytes);
    parameters.is_ok_and(|parameters| parameters.parameter.iter().any(|parameter| parameter.name == "header"))
}

/// A line of a file without a type, with the type that it states.
fn stated(line: Line) -> BadLine {
    let reason = stated_type(&line).map_or_else(|reason| reason, |found| Reason::OtherType { found });
    BadLine { line, reason }
}
