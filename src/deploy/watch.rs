//! Watches a folder that a camera writes to, and sends each new frame to a served model once.
//!
//! The folder is only read. The names of sent frames are logged in mlx's private data, so that a restart
//! continues where it stopped. If the process is killed after a response but before the log is written, that
//! frame is sent again under the same request id.
//!
//! Log: one JSON string per line, the file name of a sent frame. An incomplete last line is discarded.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deploy::{
        client::{Client, ServiceResponse},
        request_log::{MAX_CLOCK_SKEW, MAX_NAME_LENGTH},
        stop::StopFlag,
    },
    digest::Digest,
    error::{Error, Kind, Result, WithContext},
    fs::{File, FileKind, FileStat, Root, TEMP_PREFIX},
    model::split::is_image,
    path::RepoPath,
    progress::Progress,
    time,
};

/// Time without changes after which a file counts as complete.
const STABLE_TIME: Duration = Duration::from_millis(300);
/// The same for an empty file, which is probably about to be written.
const STABLE_TIME_EMPTY: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Longest wait before a retry, even if the service asks for more.
const MAX_RETRY_WAIT: Duration = Duration::from_mins(1);
/// Tries for a frame on which the service fails.
const MAX_TRIES: u32 = 3;
/// Tries to reach the service before `once` gives up.
const MAX_CONNECT_TRIES: u32 = 20;

/// Settings of a watch.
pub struct Settings<'w> {
    /// Root that holds the log of sent frames.
    pub private: &'w Root,
    pub environment: &'w str,
    /// Largest number of frames per second; `None` for no limit.
    pub rate: Option<f64>,
    /// True to end once no frame is left to send.
    pub once: bool,
    /// File that gets each response as a line of JSON.
    pub out: Option<File>,
}

/// Counts of the frames that were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of frames by predicted class.
    pub classes: BTreeMap<String, u64>,
    /// Number of frames that the service rejected.
    pub rejected: u64,
}

struct Watcher<'w> {
    folder: Root,
    client: &'w Client,
    settings: Settings<'w>,
    progress: &'w dyn Progress,
    stop: &'w StopFlag,
    /// Names of the frames sent so far.
    sent: BTreeSet<String>,
    sent_log: File,
    /// Metadata of each new file, and the time since which it has not changed.
    candidates: HashMap<String, (FileStat, Instant)>,
    /// Earliest time of the next request, by the rate limit.
    next_request: Instant,
    summary: Summary,
}

/// Sends the frames of a folder in the order of their names until `stop` is set; with `once`, until no frame
/// is left. Holds a lock, so that only one process watches a folder for an environment.
pub fn watch(
    folder: &Path,
    client: &Client,
    settings: Settings<'_>,
    progress: &dyn Progress,
    stop: &StopFlag,
) -> Result<Summary> {
    let folder = Root::open(folder)?;
    let key = Digest::of(format!("{}\n{}", settings.environment, folder.path().display()).as_bytes());
    let path = RepoPath::from_text(&format!("watch/{}", &key.hex()[..16]))?;
    let _lock = crate::fs::lock_with_progress(settings.private, &path.with_suffix(".lock"), progress)?;
    let (sent, sent_log) = open_sent_log(settings.private, &path)?;
    let mut watcher = Watcher {
        folder,
        client,
        settings,
        progress,
        stop,
        sent,
        sent_log,
        candidates: HashMap::new(),
        next_request: Instant::now(),
        summary: Summary::default(),
    };
    watcher.run()?;
    Ok(watcher.summary)
}

/// Opens the log of sent frames to append to it, and returns its names. A last line cut off by a crash is
/// removed.
fn open_sent_log(private: &Root, path: &RepoPath) -> Result<(BTreeSet<String>, File)> {
    let bytes = private.read_if_exists(path)?.unwrap_or_default();
    let complete = bytes.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
    let lines = bytes[..complete].split(|it| *it == b'\n');
    let sent = lines.filter_map(|it| serde_json::from_slice(it).ok()).collect();
    if complete < bytes.len() {
        private.write(path, &bytes[..complete], crate::fs::Sync::Now)?;
    }
    Ok((sent, private.open_append(path)?))
}

impl Watcher<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            let (ready, waiting) = self.scan()?;
            for name in &ready {
                if self.stop.is_requested() {
                    return Ok(());
                }
                self.send(name)?;
            }
            if self.settings.once && ready.is_empty() && !waiting {
                return Ok(());
            }
            let pause = if waiting { STABLE_TIME / 2 } else { POLL_INTERVAL };
            if ready.is_empty() && !self.stop.sleep(pause) {
                return Ok(());
            }
        }
    }

    /// Returns the names of new, complete frames, and true if there are incomplete ones.
    fn scan(&mut self) -> Result<(Vec<String>, bool)> {
        let dir = self.folder.dir(&RepoPath::root())?;
        let (mut ready, mut waiting, mut candidates) = (Vec::new(), false, HashMap::new());
        for (name, _) in dir.names()? {
            let Some(name) = frame_name(&name).filter(|it| !self.sent.contains(*it)) else { continue };
            let Some(stat) = dir.stat(name.as_bytes())?.filter(|it| it.kind == FileKind::File) else {
                continue;
            };
            let unchanged = self.candidates.get(name).filter(|it| it.0 == stat);
            let since = unchanged.map_or_else(Instant::now, |it| it.1);
            let needed = if stat.size == 0 { STABLE_TIME_EMPTY } else { STABLE_TIME };
            if since.elapsed() >= needed {
                ready.push(name.to_owned());
            } else {
                waiting = true;
            }
            candidates.insert(name.to_owned(), (stat, since));
        }
        self.candidates = candidates;
        Ok((ready, waiting))
    }

    /// Sends one frame, and logs its response and its name.
    fn send(&mut self, name: &str) -> Result<()> {
        let path = RepoPath::from_text(name)?;
        // Another process may have deleted the file since the scan.
        let Some(stat) = self.folder.stat(&path)? else { return Ok(()) };
        let bytes = match self.folder.read_if_exists(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(error) => {
                // One unreadable file must not stop the watch; the next start tries it again.
                self.progress.warn(&format!("`{name}` is skipped: {}", error.chain_text()));
                self.sent.insert(name.to_owned());
                return Ok(());
            }
        };
        let captured = time_from_name(name).or_else(|| time_from_mtime(stat.mtime));
        let captured = captured.filter(|it| self.is_plausible(name, it));
        let id = Digest::of(format!("{name}\n{}", Digest::of(&bytes)).as_bytes()).hex()[..32].to_owned();
        let printable = |char: char| if char.is_ascii_graphic() { char } else { '_' };
        let shown: String = name.chars().map(printable).take(MAX_NAME_LENGTH).collect();
        let headers = [("X-Request-Id", id.clone()), ("X-Name", shown)].into_iter();
        let headers: Vec<_> = headers.chain(captured.clone().map(|it| ("X-Captured-At", it))).collect();
        let Some(response) = self.classify(name, &bytes, &headers)? else { return Ok(()) };
        let mut line = json!({"name": name, "captured": captured, "id": id, "status": response.status});
        if response.status == 200 {
            let text = |key: &str| {
                let missing = || Error::corrupt(format!("the service's response has no `{key}`"));
                response.body[key].as_str().map(str::to_owned).ok_or_else(missing)
            };
            let class = text("class")?;
            line["class"] = Value::from(class.clone());
            line["probability"] = response.body["probability"].clone();
            line["scores"] = response.body["scores"].clone();
            line["version"] = Value::from(format!("{}@{}", text("model")?, text("version")?));
            *self.summary.classes.entry(class).or_default() += 1;
        } else {
            let reason = response.reason();
            self.progress.warn(&format!("`{name}` was not classified: {} {reason}", response.status));
            line["error"] = Value::from(reason);
            self.summary.rejected += 1;
        }
        if let Some(out) = &mut self.settings.out {
            out.write_all(format!("{line}\n").as_bytes()).context(|| "cannot write the responses".into())?;
        }
        self.mark_sent(name)
    }

    /// Returns true if the capture time is between 1970 and five minutes from now; warns otherwise. A frame
    /// from a camera with a wrong clock is sent without its time, and counts for the day on which it arrives.
    fn is_plausible(&self, name: &str, captured: &str) -> bool {
        let captured_millis = time::parse_millis(captured);
        let range = 0..=time::now_millis() + MAX_CLOCK_SKEW;
        let plausible = captured_millis.is_some_and(|it| range.contains(&it));
        if !plausible {
            self.progress.warn(&format!(
                "`{name}` has an impossible capture time, {captured}: it is sent without one"
            ));
        }
        plausible
    }

    fn mark_sent(&mut self, name: &str) -> Result<()> {
        let line = format!("{}\n", Value::from(name));
        self.sent_log.write_all(line.as_bytes()).context(|| "cannot write the log of sent frames".into())?;
        self.sent.insert(name.to_owned());
        Ok(())
    }

    /// Sends a frame, with retries, until there is a final response; `None` if a stop was requested before.
    fn classify(
        &mut self,
        name: &str,
        bytes: &[u8],
        headers: &[(&str, String)],
    ) -> Result<Option<ServiceResponse>> {
        let (mut failed, mut unreachable) = (0, 0);
        loop {
            if !self.stop.sleep(self.next_request.saturating_duration_since(Instant::now())) {
                return Ok(None);
            }
            if let Some(rate) = self.settings.rate {
                self.next_request = Instant::now() + Duration::from_secs_f64(1.0 / rate);
            }
            let pause = match self.client.classify(bytes.to_vec(), headers) {
                Ok(response) => match response.status {
                    401 | 403 | 404 => return Err(response.to_error()),
                    429 | 503 => {
                        response.retry_after.map_or(POLL_INTERVAL, Duration::from_secs).min(MAX_RETRY_WAIT)
                    }
                    408 | 500.. if failed + 1 < MAX_TRIES => {
                        failed += 1;
                        POLL_INTERVAL
                    }
                    _ => return Ok(Some(response)),
                },
                Err(error) if error.kind() == Kind::Unavailable => {
                    unreachable += 1;
                    self.on_unreachable(name, unreachable, error)?;
                    POLL_INTERVAL
                }
                Err(error) => return Err(error),
            };
            if !self.stop.sleep(pause) {
                return Ok(None);
            }
        }
    }

    /// Warns at the first try; returns the error if `once` is set and the last try has failed.
    fn on_unreachable(&self, name: &str, tries: u32, error: Error) -> Result<()> {
        if tries == 1 {
            self.progress.warn(&format!("{}; retrying `{name}`", error.chain_text()));
        }
        if self.settings.once && tries >= MAX_CONNECT_TRIES { Err(error) } else { Ok(()) }
    }
}

/// Returns the name as text if it is that of an image, and not of a hidden or temporary file.
fn frame_name(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    let path = RepoPath::from_text(text).ok()?;
    let hidden = text.starts_with('.') || name.starts_with(TEMP_PREFIX) || text.starts_with('~');
    // Unfinished files mostly have an extension of their own, such as `.part`.
    (!hidden && is_image(&path)).then_some(text)
}

/// Parses the time in a name such as `2026-03-09T08-15-00Z.jpg`, as RFC 3339.
fn time_from_name(name: &str) -> Option<String> {
    let (stem, _) = name.rsplit_once('.')?;
    let (day, time) = stem.split_once('T')?;
    let found: jiff::Timestamp = format!("{day}T{}", time.replace('-', ":")).parse().ok()?;
    Some(found.to_string())
}

fn time_from_mtime(nanoseconds: i64) -> Option<String> {
    Some(jiff::Timestamp::from_millisecond(nanoseconds / 1_000_000).ok()?.to_string())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
        sync::{Arc, Mutex},
        thread,
    };

    use super::*;
    use crate::{fs::Sync, progress::Silent};

    /// Starts a service that answers each request by its number. The list gets the name and time of each
    /// request.
    fn service(answer: impl Fn(usize) -> String + Send + 'static) -> (Client, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client =
            Client::new(&format!("http://{}", listener.local_addr().unwrap()), None, Duration::from_secs(5));
        let names: Arc<Mutex<Vec<String>>> = Arc::default();
        let received = Arc::clone(&names);
        thread::spawn(move || {
            for (number, stream) in listener.incoming().enumerate() {
                let mut stream = stream.unwrap();
                let mut text = String::new();
                let mut bytes = [0; 4096];
                while !text.contains("\r\n\r\n") || !text.ends_with("end") {
                    let count = stream.read(&mut bytes).unwrap();
                    text.push_str(&String::from_utf8_lossy(&bytes[..count]));
                }
                let header = |name: &str| {
                    let line = text.lines().find(|line| line.to_lowercase().starts_with(name));
                    let value = line.and_then(|line| line.split_once(": "));
                    value.map(|(_, value)| value.to_owned()).unwrap_or_default()
                };
                let line = format!("{} {}", header("x-name"), header("x-captured-at"));
                received.lock().unwrap().push(line);
                stream.write_all(answer(number).as_bytes()).unwrap();
            }
        });
        (client.unwrap(), names)
    }

    fn reply(status: &str, headers: &str, body: &str) -> String {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\n{headers}Connection: close\r\nContent-Length: {length}\r\n\r\n{body}")
    }

    fn cat() -> String {
        let body = r#"{"id": "x", "class": "cat", "probability": 0.75, "scores": {"cat": 0.75, "dog": 0.25},
            "model": "pets", "version": "v0.1.0"}"#;
        reply("200 OK", "", body)
    }

    fn once(folder: &Path, private: &Root, client: &Client, out: Option<File>) -> Summary {
        let settings = Settings { private, environment: "test", rate: None, once: true, out };
        watch(folder, client, settings, &Silent, &StopFlag::default()).unwrap()
    }

    #[test]
    fn frames_are_sent_once_in_order_and_a_rejected_one_is_not_retried() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, private) =
            (temp.path().join("frames"), Root::create(&temp.path().join("private")).unwrap());
        let root = Root::create(&folder).unwrap();
        let write = |name: &str| {
            root.write(&RepoPath::from_text(name).unwrap(), b"end", Sync::Later).unwrap();
        };
        for name in
            ["2026-03-09T08-15-00Z.jpg", "2026-03-09T07-15-00Z.jpg", ".hidden.jpg", "b.jpg.part", "x.txt"]
        {
            write(name);
        }
        let (client, names) = service(|number| match number {
            0 => reply("503 X", "Retry-After: 0\r\n", "{}"),
            2 => reply("400 X", "", r#"{"error": "not an image"}"#),
            _ => cat(),
        });
        let out = private.open_append(&RepoPath::from_text("out").unwrap()).unwrap();
        let summary = once(&folder, &private, &client, Some(out));
        assert_eq!(summary, Summary { classes: [("cat".to_owned(), 1)].into(), rejected: 1 });
        write("2026-03-09T09-15-00Z.jpg");
        assert_eq!(once(&folder, &private, &client, None).classes["cat"], 1);
        assert_eq!(once(&folder, &private, &client, None), Summary::default());
        let received = names.lock().unwrap().clone();
        let expected = [7, 7, 8, 9].map(|it| format!("2026-03-09T0{it}-15-00Z.jpg 2026-03-09T0{it}:15:00Z"));
        assert_eq!(received, expected);
        let out = private.read(&RepoPath::from_text("out").unwrap()).unwrap();
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        assert_eq!((&lines[0]["class"], &lines[0]["version"]), (&json!("cat"), &json!("pets@v0.1.0")));
        assert_eq!((&lines[1]["status"], &lines[1]["error"]), (&json!(400), &json!("not an image")));
    }

    #[test]
    fn frames_with_a_wrong_clock_or_a_long_name_are_still_sent() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::create(&temp.path().join("private")).unwrap();
        let root = Root::create(&temp.path().join("frames")).unwrap();
        let long = format!("{}.jpg", "x".repeat(240));
        for name in ["1903-03-09T08-15-00Z.jpg", "9000-03-09T08-15-00Z.jpg", &long] {
            root.write(&RepoPath::from_text(name).unwrap(), b"end", Sync::Later).unwrap();
        }
        let (client, names) = service(|_| cat());
        assert_eq!(once(root.path(), &private, &client, None).classes["cat"], 3);
        let received = names.lock().unwrap().clone();
        assert_eq!(received[..2], ["1903-03-09T08-15-00Z.jpg ", "9000-03-09T08-15-00Z.jpg "]);
        let (name, captured) = received[2].split_once(' ').unwrap();
        assert_eq!((name, captured.is_empty()), (&long[..MAX_NAME_LENGTH], false));
    }

    #[test]
    fn a_partly_written_file_is_sent_once_it_is_complete() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::create(&temp.path().join("private")).unwrap();
        let folder = temp.path().join("frames");
        let root = Root::create(&folder).unwrap();
        let mut file = root.open_append(&RepoPath::from_text("a.jpg").unwrap()).unwrap();
        let slow = thread::spawn(move || {
            for _ in 0..8 {
                file.write_all(b"part ").unwrap();
                thread::sleep(STABLE_TIME / 3);
            }
            file.write_all(b"end").unwrap();
        });
        let (client, names) = service(|_| cat());
        once(&folder, &private, &client, None);
        assert!(slow.is_finished());
        assert_eq!(names.lock().unwrap().len(), 1);
    }

    #[test]
    fn an_incomplete_log_line_is_discarded() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::open(temp.path()).unwrap();
        let path = RepoPath::from_text("watch/x").unwrap();
        private.write(&path, b"\"a.jpg\"\n\"b.j", Sync::Later).unwrap();
        let (sent, mut sent_log) = open_sent_log(&private, &path).unwrap();
        assert_eq!(sent, ["a.jpg".to_owned()].into());
        sent_log.write_all(b"\"b.jpg\"\n").unwrap();
        assert_eq!(open_sent_log(&private, &path).unwrap().0.len(), 2);
    }

    #[test]
    fn times_are_parsed_from_names() {
        assert_eq!(time_from_name("2026-03-09T08-15-00Z.jpg").unwrap(), "2026-03-09T08:15:00Z");
        assert_eq!(time_from_name("2026-03-09T08-15-00.250Z.jpg").unwrap(), "2026-03-09T08:15:00.25Z");
        for name in ["IMG_0001.jpg", "2026-03-09.jpg", "2026-13-09T08-15-00Z.jpg", "T.jpg", "x"] {
            assert_eq!(time_from_name(name), None, "{name}");
        }
        assert_eq!(time_from_mtime(1_700_000_000_500_000_000).unwrap(), "2023-11-14T22:13:20.5Z");
    }
}
