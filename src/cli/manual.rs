//! `completions` and `man`: what packages install beside the program, made from the commands themselves.

use std::{
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{
    Cli,
    exit::{Exit, failed},
    help, look,
};

#[derive(Args, Debug)]
pub(super) struct CompletionsArguments {
    /// The shell that is to complete the commands
    shell: Shell,
}

#[derive(Args, Debug)]
pub(super) struct ManArguments {
    /// Write a page for each command into this folder, instead of the page of fhir-sync to the standard output
    #[arg(long, value_name = "FOLDER")]
    dir: Option<PathBuf>,
}

pub(super) fn completions(arguments: &CompletionsArguments) -> Result<(), Exit> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "fhir-sync", &mut script);
    look::print(&String::from_utf8_lossy(&script))
}

pub(super) fn man(arguments: &ManArguments) -> Result<(), Exit> {
    match &arguments.dir {
        None => {
            let mut page = Vec::new();
            Man::new(help::command()).render(&mut page).map_err(|error| failed(&error.to_string()))?;
            look::print(&String::from_utf8_lossy(&page))
        }
        Some(dir) => {
            pages(dir).map_err(|error| failed(&format!("the pages cannot be written to {}: {error}", dir.display())))
        }
    }
}

fn pages(dir: &Path) -> std::io::Result<()> {
    fs::create_dir_all(dir)?;
    clap_mangen::generate_to(help::command(), dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        pages(folder.path()).unwrap();
        for page in ["fhir-sync.1", "fhir-sync-sync.1", "fhir-sync-config-print.1", "fhir-sync-quarantine-list.1"] {
            let text = fs::read_to_string(folder.path().join(page)).unwrap();
            assert!(text.contains(".SH NAME") && text.contains(".SH SYNOPSIS"), "{page}");
        }
    }

    #[test]
    fn every_shell_has_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "fhir-sync", &mut script);
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("quarantine") && script.contains("full-refresh"), "{shell}");
        }
    }
}
