//! A command that prints a secret: `vault`, `az`, `aws`, `op`, or a script.
//!
//! What always holds: no shell reads the arguments; the standard error is thrown away, because some programs print there
//! what they were given; at the end of its time the command and what it started are killed.

use std::{
    io::{ErrorKind, Read as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};
use secrecy::SecretString;

use super::{Error, MAX_BYTES, usable};

/// How long a command may take.
pub const TIME_LIMIT: Duration = Duration::from_secs(30);

/// How often a command that has closed its output is asked whether it has ended.
const ASK_EVERY: Duration = Duration::from_millis(10);

/// Runs the program `line[0]` with the arguments after it. Blocks.
pub fn run(line: &[String], time_limit: Duration) -> Result<SecretString, Error> {
    let Some((program, arguments)) = line.split_first() else {
        return Err(Error::Unusable("names no program".to_owned()));
    };
    let until = Instant::now() + time_limit;
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        // What it starts is in the same group, and ends with it.
        .process_group(0)
        .spawn();
    let mut child = spawned.map_err(|error| match error.kind() {
        ErrorKind::NotFound => Error::Absent(format!("{program} was not found")),
        _ => Error::Unusable(format!("{program} cannot be started: {error}")),
    })?;
    let finished = output(&mut child, until).and_then(|bytes| Some((bytes, ended(&mut child, until)?)));
    let Some((bytes, status)) = finished else {
        end(&mut child);
        let seconds = time_limit.as_secs_f64();
        return Err(Error::NotNow(format!("{program} did not end within {seconds} s and was stopped")));
    };
    if bytes.len() as u64 > MAX_BYTES {
        end(&mut child);
        return Err(Error::Unusable(format!("{program} printed more than 64 KiB")));
    }
    if !status.is_some_and(|status| status.success()) {
        let status = status.map_or("without a status".to_owned(), |status| status.to_string());
        return Err(Error::NotNow(format!(
            "{program} failed: {status}; run it by hand as the same user to see its messages"
        )));
    }
    usable(bytes).map_err(|what| Error::Unusable(format!("what {program} printed {what}")))
}

/// What the command prints, up to one byte more than the limit; `None` at the end of its time.
fn output(child: &mut Child, until: Instant) -> Option<Vec<u8>> {
    let stdout = child.stdout.take()?;
    let (into, from) = mpsc::channel();
    // It ends when the output is closed, at the latest when the command is killed.
    thread::Builder::new()
        .name("secret".to_owned())
        .spawn(move || {
            let mut bytes = Vec::new();
            let read = stdout.take(MAX_BYTES + 1).read_to_end(&mut bytes);
            // Nobody waits any longer where the time is over.
            let _ = into.send(read.map(|_| bytes));
        })
        .ok()?;
    from.recv_timeout(until.saturating_duration_since(Instant::now())).ok()?.ok()
}

/// The status of the command once it has ended; `None` at the end of its time.
#[expect(clippy::option_option, reason = "a command without a status and one that runs on are different")]
fn ended(child: &mut Child, until: Instant) -> Option<Option<ExitStatus>> {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Some(Some(status)),
            Ok(None) if Instant::now() < until => thread::sleep(ASK_EVERY),
            Ok(None) => return None,
            Err(_) => return Some(None),
        }
    }
}

/// Kills the command and what it started. Best effort: it may have ended meanwhile.
fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}
