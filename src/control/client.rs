//! The side of the command: it asks the daemon, shows its progress, and waits for the answer.

use std::{
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncWriteExt as _, BufReader},
    net::UnixStream,
};
use tokio_util::sync::CancellationToken;

use super::{
    Answer, Error, Place, ROOT, Work, our_user, place_of,
    protocol::{Event, MAX_EVENT_BYTES, Request, read_line, write_line},
};
use crate::sync::{Location, ProgressBoard};

/// A daemon that takes commands.
pub struct Client {
    control: PathBuf,
    tables: String,
}

impl Client {
    /// The daemon with this control socket, named without its suffix; `None` where none runs: there is no socket, or
    /// nobody listens to it.
    pub async fn find(control: &Path, tables: &Location) -> Result<Option<Self>, Error> {
        match connect(control).await {
            Ok(_) => Ok(Some(Self { control: control.to_owned(), tables: place_of(tables) })),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(not_connected(control, &error)),
        }
    }

    /// Has this done by the daemon. Its progress is on the board; a cancelled `stop` withdraws the request, and the
    /// answer is how far it was.
    pub async fn work(&self, work: &Work, board: &ProgressBoard, stop: &CancellationToken) -> Result<Answer, Error> {
        let request = Request::new(&self.tables, work)?;
        let stream = connect(&self.control).await.map_err(|error| not_connected(&self.control, &error))?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let sent = write_line(&mut write, &request).await;
        // One future to the answer: a line of which a part has arrived is not lost when the request is withdrawn.
        let answer = async {
            loop {
                match read_line::<Event>(&mut read, MAX_EVENT_BYTES).await {
                    Ok(Some(Event::Progress(activities))) => board.replace(activities.into_iter().collect()),
                    Ok(Some(Event::Answer(answer))) => return answer,
                    Ok(None) => return Err(lost(sent.as_ref().err())),
                    Err(error) => return Err(lost(Some(&error))),
                }
            }
        };
        let withdraw = async {
            stop.cancelled().await;
            // Where this fails, the daemon is gone, and there is no answer either.
            drop(write.shutdown().await);
            std::future::pending().await
        };
        tokio::select! {
            answer = answer => answer,
            never = withdraw => never,
        }
    }
}

async fn connect(control: &Path) -> io::Result<UnixStream> {
    let place = Place::beside(control)?;
    let stream = UnixStream::connect(place.path("")).await?;
    // The request may hold a resource: it goes to nobody but those who may read the tables anyway.
    let peer = stream.peer_cred()?.uid();
    if [our_user(), ROOT, place.owner()?].contains(&peer) {
        Ok(stream)
    } else {
        Err(io::Error::new(
            ErrorKind::PermissionDenied,
            format!("user {peer} listens to it, who does not own the folder"),
        ))
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory | ErrorKind::ConnectionRefused)
}

fn not_connected(control: &Path, error: &io::Error) -> Error {
    let place = control.display();
    Error::Failed(match error.kind() {
        ErrorKind::PermissionDenied => format!(
            "the service with the control socket {place}.socket takes commands from its own user and from root only ({error}); \
             give the command as one of them, such as with sudo. Where no service runs, keep the state in a folder of \
             your own: `--state-file`, `state.file`"
        ),
        _ => format!("the service with the control socket {place}.socket cannot be reached: {error}"),
    })
}

fn lost(error: Option<&io::Error>) -> Error {
    let why = error.map(|error| format!(" ({error})")).unwrap_or_default();
    Error::Failed(format!("the service ended without an answer{why}; its log says what it did. Give the command again"))
}
