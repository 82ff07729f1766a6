//! A process: the real binary with a configuration file, and everything that it prints.

use std::{
    fs,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use fhir_sync::{
    state::{LeasedBy, StatePlace},
    sync::Level,
};
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use super::{LIMIT, Setup, eventually};

/// A schedule that is due once in four years.
pub const RARELY: &str = "0 0 5 29 2 *";

pub const BINARY: &str = env!("CARGO_BIN_EXE_fhir-sync");

/// The running binary. It is killed when this is dropped.
pub struct Process {
    child: Child,
    stdout: Arc<Mutex<String>>,
    stderr: Arc<Mutex<String>>,
    readers: JoinSet<()>,
}

/// The result of a process that has ended.
#[derive(Debug)]
pub struct Ended {
    /// `None` if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    /// The events of its log with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        let events = self.stderr.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        events.filter(|event| event["message"] == message).collect()
    }

    /// Everything that it printed, stdout first.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl Setup {
    /// A configuration with which a process does the same as [`Setup::sync`] and logs everything.
    pub fn config(&self) -> String {
        let types: Vec<_> = self.export.types.iter().map(|of| format!("\"{of}\"")).collect();
        let level = match &self.export.level {
            Level::System => "level = \"system\"".to_owned(),
            Level::Patient => "level = \"patient\"".to_owned(),
            Level::Group(id) => format!("level = \"group\"\ngroup = \"{id}\""),
        };
        let state = match &self.state {
            StatePlace::File(file) => format!("file = \"{}\"", file.display()),
            documents @ StatePlace::Documents { .. } => format!("url = \"file://{}\"", documents.shown()),
        };
        let shares = matches!(self.state, StatePlace::Documents { leased_by: LeasedBy::Several, .. });
        format!(
            "[server]\nurl = \"{}\"\nsource = \"hospital\"\n\
             poll = {{ min_interval = \"10ms\", max_interval = \"50ms\" }}\n\
             outage_patience = \"300ms\"\n\
             http = {{ retry_min_wait = \"10ms\", retry_max_wait = \"50ms\" }}\n\
             [tables]\nroot = \"{}\"\n[state]\n{state}\n[daemon]\nshare_exports = {shares}\n[health]\nlisten = \"127.0.0.1:0\"\n\
             [log]\nformat = \"json\"\nfilter = \"trace\"\n\
             [[export]]\nname = \"all\"\n{level}\ntypes = [{}]\nincremental = \"{}\"\n",
            self.server.url(),
            self.lake().display(),
            types.join(", "),
            self.schedule,
        )
    }

    /// `fhir-sync <command> --config …`, with further settings from the environment (`FHIR_SYNC__…`).
    pub fn start(&self, command: &str, settings: &[(&str, &str)]) -> Process {
        let path = self.folder.path().join("fhir-sync.toml");
        fs::write(&path, self.config()).unwrap();
        Process::start(&[command, "--config", path.to_str().unwrap()], settings)
    }

    /// A command such as `["quarantine", "list", "--json"]`, to its end.
    pub async fn command(&self, words: &[&str], settings: &[(&str, &str)]) -> Ended {
        let path = self.folder.path().join("fhir-sync.toml");
        fs::write(&path, self.config()).unwrap();
        let arguments = [words, &["--config", path.to_str().unwrap()]].concat();
        Process::start(&arguments, settings).end().await
    }

    /// A command that only looks, without the settings of a server's key. It must succeed.
    pub async fn look(&self, words: &[&str]) -> Ended {
        let ended = self.command(words, &[]).await;
        assert_eq!(ended.code, Some(0), "{}", ended.output());
        ended
    }

    /// `fhir-sync sync` to its end.
    pub async fn process(&self, settings: &[(&str, &str)]) -> Ended {
        self.start("sync", settings).end().await
    }
}

/// What a command with `--json` printed.
pub fn json_of(ended: &Ended) -> Value {
    serde_json::from_str(&ended.stdout).unwrap()
}

impl Process {
    pub fn start(arguments: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut command = Command::new(BINARY);
        // The environment of the machine must not change the result.
        command.args(arguments).env_clear().envs(environment.iter().copied());
        Self::spawn(command)
    }

    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().unwrap();
        let mut readers = JoinSet::new();
        let stdout = collected(child.stdout.take().unwrap(), &mut readers);
        let stderr = collected(child.stderr.take().unwrap(), &mut readers);
        Self { child, stdout, stderr, readers }
    }

    /// Sends SIGTERM.
    pub async fn terminate(&self) {
        self.signal("TERM").await;
    }

    pub async fn signal(&self, name: &str) {
        let id = self.child.id().unwrap();
        // `kill` is built into the shell; the command may not be installed.
        let status = Command::new("sh").arg("-c").arg(format!("kill -{name} {id}")).status().await.unwrap();
        assert!(status.success());
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(mut self) {
        self.child.kill().await.unwrap();
    }

    /// Sends SIGKILL; returns what it had printed.
    pub async fn killed(mut self) -> Ended {
        self.child.kill().await.unwrap();
        self.end().await
    }

    pub async fn end(mut self) -> Ended {
        let Ok(status) = timeout(LIMIT, self.child.wait()).await else {
            panic!("the process did not end; it printed:\n{}", text(&self.stderr));
        };
        while self.readers.join_next().await.is_some() {}
        Ended { code: status.unwrap().code(), stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for a log event with this message.
    pub async fn logged(&self, message: &str) -> Value {
        let find = async || {
            let events = text(&self.stderr);
            let mut events = events.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            events.find(|event| event["message"] == message)
        };
        eventually(&format!("{message:?} in the log of\n{}", text(&self.stderr)), find).await
    }

    /// Waits until this is on its standard output; returns all that is there.
    pub async fn printed(&self, what: &str) -> String {
        let find = async || Some(text(&self.stdout)).filter(|printed| printed.contains(what));
        eventually(&format!("{what:?} of\n{}", text(&self.stderr)), find).await
    }

    /// Waits for the health listener; returns its origin.
    pub async fn health(&self) -> String {
        format!("http://{}", self.logged("ready").await["health"].as_str().unwrap())
    }
}

fn text(of: &Mutex<String>) -> String {
    of.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

fn collected(mut from: impl AsyncRead + Unpin + Send + 'static, readers: &mut JoinSet<()>) -> Arc<Mutex<String>> {
    let all = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&all);
    readers.spawn(async move {
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(bytes @ 1..) = from.read(&mut chunk).await {
            into.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&chunk[..bytes]));
        }
    });
    all
}
