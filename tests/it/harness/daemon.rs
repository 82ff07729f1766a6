//! A daemon: the real binary in the command `run`, asked over HTTP.

use serde_json::Value;

use super::{Ended, Process, Setup, eventually};

/// A running daemon, and the origin of its health listener.
pub struct Daemon {
    pub process: Process,
    origin: String,
}

impl Daemon {
    pub async fn start(setup: &Setup, settings: &[(&str, &str)]) -> Self {
        let process = setup.start("run", settings);
        let origin = process.health().await;
        Self { process, origin }
    }

    /// With this configuration instead of that of the setup.
    pub async fn with_config(setup: &Setup, config: &str, settings: &[(&str, &str)]) -> Self {
        let path = setup.folder.path().join("daemon.toml");
        std::fs::write(&path, config).unwrap();
        let process = Process::start(&["run", "--config", path.to_str().unwrap()], settings);
        let origin = process.health().await;
        Self { process, origin }
    }

    /// Of the health listener.
    pub fn address(&self) -> &str {
        self.origin.trim_start_matches("http://")
    }

    pub async fn response(&self, method: reqwest::Method, path: &str) -> reqwest::Response {
        reqwest::Client::new().request(method, format!("{}{path}", self.origin)).send().await.unwrap()
    }

    pub async fn get(&self, path: &str) -> (u16, String) {
        let response = self.response(reqwest::Method::GET, path).await;
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub async fn health(&self) -> (u16, Value) {
        let (status, body) = self.get("/health").await;
        (status, serde_json::from_str(&body).unwrap())
    }

    pub async fn eventually_health(&self, what: &str, is: impl Fn(u16, &Value) -> bool) -> Value {
        let look = async || Some(self.health().await).filter(|(status, body)| is(*status, body));
        eventually(what, look).await.1
    }

    pub async fn healthcheck(&self) -> Ended {
        Process::start(&["healthcheck", "--url", &format!("{}/health", self.origin)], &[]).end().await
    }

    pub async fn stop(self) {
        self.process.terminate().await;
        let ended = self.process.end().await;
        assert_eq!(ended.code, Some(0), "{}", ended.output());
    }
}
