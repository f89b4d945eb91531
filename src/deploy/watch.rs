//! Brings what a camera drops into a folder to a served model, each frame once.
//!
//! The folder is only read. What was sent is remembered by name beside the repository's own data, so that
//! a restart goes on where it stopped. A process killed between an answer and its note sends that frame once
//! more, under the same request id.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io::Write as _,
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    deploy::{
        client::{Answered, Client},
        note::{AHEAD, LONGEST_NAME},
        stop::Stop,
    },
    digest::Digest,
    error::{Doing, Error, Kind, Result},
    fs::{File, Form, Root, Stamp, TEMPORARY},
    model::split::is_picture,
    path::RepoPath,
    progress::Progress,
    time,
};

/// A file that stays the same for so long is whole.
const SETTLED: Duration = Duration::from_millis(300);
/// An empty one is probably about to be written.
const SETTLED_EMPTY: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_secs(1);
/// A service is not waited for longer than this, whatever it asks for.
const LONGEST_WAIT: Duration = Duration::from_mins(1);
/// How often a frame is tried that makes the service fail.
const TRIES: u32 = 3;
/// How often an absent service is asked before `once` gives up.
const CALLS: u32 = 20;

/// How to watch.
pub struct Settings<'w> {
    /// Where what was sent is remembered.
    pub private: &'w Root,
    pub environment: &'w str,
    /// Frames a second at most.
    pub rate: Option<f64>,
    /// End when nothing is left to send.
    pub once: bool,
    /// Each answer goes here, as a line of JSON.
    pub out: Option<File>,
}

/// What became of the frames.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Frames by the class that was said.
    pub classes: BTreeMap<String, u64>,
    /// Frames that the service would not take.
    pub refused: u64,
}

struct Watch<'w> {
    folder: Root,
    client: &'w Client,
    settings: Settings<'w>,
    progress: &'w dyn Progress,
    stop: &'w Stop,
    sent: BTreeSet<String>,
    memory: File,
    /// What each new file looked like, and since when.
    seen: HashMap<String, (Stamp, Instant)>,
    next: Instant,
    tally: Tally,
}

/// Sends the frames of a folder in the order of their names until it is told to stop; with `once`, until there
/// are no more.
pub fn watch(
    folder: &Path,
    client: &Client,
    settings: Settings<'_>,
    progress: &dyn Progress,
    stop: &Stop,
) -> Result<Tally> {
    let folder = Root::open(folder)?;
    let key = Digest::of(format!("{}\n{}", settings.environment, folder.path().display()).as_bytes());
    let place = RepoPath::from_text(&format!("watch/{}", &key.hex()[..16]))?;
    let _turn = crate::fs::lock_telling(settings.private, &place.with_suffix(".lock"), progress)?;
    let (sent, memory) = remembered(settings.private, &place)?;
    let (seen, next, tally) = (HashMap::new(), Instant::now(), Tally::default());
    let mut watch = Watch { folder, client, settings, progress, stop, sent, memory, seen, next, tally };
    watch.run()?;
    Ok(watch.tally)
}

/// Names that were sent, one JSON text a line; a line that a crash cut off counts for nothing.
fn remembered(private: &Root, place: &RepoPath) -> Result<(BTreeSet<String>, File)> {
    let bytes = private.read_if_there(place)?.unwrap_or_default();
    let whole = bytes.iter().rposition(|it| *it == b'\n').map_or(0, |it| it + 1);
    let sent =
        bytes[..whole].split(|it| *it == b'\n').filter_map(|it| serde_json::from_slice(it).ok()).collect();
    if whole < bytes.len() {
        private.write(place, &bytes[..whole], crate::fs::Sync::Yes)?;
    }
    Ok((sent, private.append(place)?))
}

impl Watch<'_> {
    fn run(&mut self) -> Result<()> {
        loop {
            let (ready, waiting) = self.look()?;
            for name in &ready {
                if self.stop.is_asked() {
                    return Ok(());
                }
                self.send(name)?;
            }
            if self.settings.once && ready.is_empty() && !waiting {
                return Ok(());
            }
            let pause = if waiting { SETTLED / 2 } else { POLL };
            if ready.is_empty() && !self.stop.sleep(pause) {
                return Ok(());
            }
        }
    }

    /// New frames that are whole, by name; and whether there are some that are not.
    fn look(&mut self) -> Result<(Vec<String>, bool)> {
        let dir = self.folder.dir(&RepoPath::root())?;
        let (mut ready, mut waiting, mut seen) = (Vec::new(), false, HashMap::new());
        for (name, _) in dir.names()? {
            let Some(name) = frame(&name).filter(|it| !self.sent.contains(*it)) else { continue };
            let Some(stamp) = dir.stamp(name.as_bytes())?.filter(|it| it.form == Form::File) else {
                continue;
            };
            let known = self.seen.get(name).filter(|it| it.0 == stamp);
            let since = known.map_or_else(Instant::now, |it| it.1);
            let needed = if stamp.size == 0 { SETTLED_EMPTY } else { SETTLED };
            if since.elapsed() >= needed {
                ready.push(name.to_owned());
            } else {
                waiting = true;
            }
            seen.insert(name.to_owned(), (stamp, since));
        }
        self.seen = seen;
        Ok((ready, waiting))
    }

    fn send(&mut self, name: &str) -> Result<()> {
        let path = RepoPath::from_text(name)?;
        // Whoever tidies up the folder may be quicker than we are.
        let Some(stamp) = self.folder.stamp(&path)? else { return Ok(()) };
        let bytes = match self.folder.read_if_there(&path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(()),
            Err(error) => {
                // One file must not stop the camera; another start tries it again.
                self.progress.warn(&format!("`{name}` is left out: {}", error.full_text()));
                self.sent.insert(name.to_owned());
                return Ok(());
            }
        };
        let captured = taken(name).or_else(|| moment(stamp.mtime)).filter(|it| self.believes(name, it));
        let id = Digest::of(format!("{name}\n{}", Digest::of(&bytes)).as_bytes()).hex()[..32].to_owned();
        let plain = |it: char| if it.is_ascii_graphic() { it } else { '_' };
        let shown: String = name.chars().map(plain).take(LONGEST_NAME).collect();
        let about = [("X-Request-Id", id.clone()), ("X-Name", shown)].into_iter();
        let about: Vec<_> = about.chain(captured.clone().map(|it| ("X-Captured-At", it))).collect();
        let Some(reply) = self.ask(name, &bytes, &about)? else { return Ok(()) };
        let mut line = json!({"name": name, "captured": captured, "id": id, "status": reply.status});
        if reply.status == 200 {
            let text = |key: &str| {
                let missing = || Error::corrupt(format!("the service's answer has no {key}"));
                reply.body[key].as_str().map(str::to_owned).ok_or_else(missing)
            };
            let class = text("class")?;
            line["class"] = Value::from(class.clone());
            line["probability"] = reply.body["probability"].clone();
            line["scores"] = reply.body["scores"].clone();
            line["version"] = Value::from(format!("{}@{}", text("model")?, text("version")?));
            *self.tally.classes.entry(class).or_default() += 1;
        } else {
            let reason = reply.reason();
            self.progress.warn(&format!("`{name}` is given up: {} {reason}", reply.status));
            line["error"] = Value::from(reason);
            self.tally.refused += 1;
        }
        if let Some(out) = &mut self.settings.out {
            out.write_all(format!("{line}\n").as_bytes()).doing(|| "cannot write the answers".into())?;
        }
        self.note(name)
    }

    /// A camera whose clock is wrong still sends its frames; they count for the day they arrive on.
    fn believes(&self, name: &str, captured: &str) -> bool {
        let moment = time::parse_millis(captured);
        let sane = moment.is_some_and(|it| (0..=time::now_millis() + AHEAD).contains(&it));
        if !sane {
            self.progress.warn(&format!(
                "`{name}` says it was taken at {captured}, which cannot be: its time is left out"
            ));
        }
        sane
    }

    fn note(&mut self, name: &str) -> Result<()> {
        let line = format!("{}\n", Value::from(name));
        self.memory.write_all(line.as_bytes()).doing(|| "cannot note what was sent".into())?;
        self.sent.insert(name.to_owned());
        Ok(())
    }

    /// Asks until there is an answer to the frame itself; none when told to stop before.
    fn ask(&mut self, name: &str, bytes: &[u8], about: &[(&str, String)]) -> Result<Option<Answered>> {
        let (mut failed, mut absent) = (0, 0);
        loop {
            if !self.stop.sleep(self.next.saturating_duration_since(Instant::now())) {
                return Ok(None);
            }
            if let Some(rate) = self.settings.rate {
                self.next = Instant::now() + Duration::from_secs_f64(1.0 / rate);
            }
            let pause = match self.client.classify(bytes.to_vec(), about) {
                Ok(reply) => match reply.status {
                    401 | 403 | 404 => return Err(reply.refusal()),
                    429 | 503 => reply.retry_after.map_or(POLL, Duration::from_secs).min(LONGEST_WAIT),
                    408 | 500.. if failed + 1 < TRIES => {
                        failed += 1;
                        POLL
                    }
                    _ => return Ok(Some(reply)),
                },
                Err(error) if error.kind() == Kind::Unavailable => {
                    absent += 1;
                    self.absent(name, absent, error)?;
                    POLL
                }
                Err(error) => return Err(error),
            };
            if !self.stop.sleep(pause) {
                return Ok(None);
            }
        }
    }

    fn absent(&self, name: &str, calls: u32, error: Error) -> Result<()> {
        if calls == 1 {
            self.progress.warn(&format!("{}; `{name}` waits", error.full_text()));
        }
        if self.settings.once && calls >= CALLS { Err(error) } else { Ok(()) }
    }
}

/// The name of a file that a camera has finished, as far as names tell.
fn frame(name: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(name).ok()?;
    let path = RepoPath::from_text(text).ok()?;
    let hidden = text.starts_with('.') || name.starts_with(TEMPORARY) || text.starts_with('~');
    // What is still written mostly ends in something that is no picture's ending.
    (!hidden && is_picture(&path)).then_some(text)
}

/// The time that a name tells, such as `2026-03-09T08-15-00Z.jpg`, as RFC 3339.
fn taken(name: &str) -> Option<String> {
    let (stem, _) = name.rsplit_once('.')?;
    let (day, time) = stem.split_once('T')?;
    let found: jiff::Timestamp = format!("{day}T{}", time.replace('-', ":")).parse().ok()?;
    Some(found.to_string())
}

fn moment(nanoseconds: i64) -> Option<String> {
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

    /// A service that answers each request by its number; the names it was sent.
    fn service(answer: impl Fn(usize) -> String + Send + 'static) -> (Client, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client =
            Client::new(&format!("http://{}", listener.local_addr().unwrap()), None, Duration::from_secs(5));
        let names: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&names);
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
                    let line = text.lines().find(|it| it.to_lowercase().starts_with(name));
                    line.and_then(|it| it.split_once(": ")).map(|it| it.1.to_owned()).unwrap_or_default()
                };
                let told = format!("{} {}", header("x-name"), header("x-captured-at"));
                heard.lock().unwrap().push(told);
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

    fn once(folder: &Path, private: &Root, client: &Client, out: Option<File>) -> Tally {
        let settings = Settings { private, environment: "test", rate: None, once: true, out };
        watch(folder, client, settings, &Silent, &Stop::default()).unwrap()
    }

    #[test]
    fn frames_go_once_in_order_and_a_refusal_is_not_repeated() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, private) =
            (temp.path().join("frames"), Root::create(&temp.path().join("private")).unwrap());
        let root = Root::create(&folder).unwrap();
        let put = |name: &str| {
            root.write(&RepoPath::from_text(name).unwrap(), b"end", Sync::Later).unwrap();
        };
        for name in
            ["2026-03-09T08-15-00Z.jpg", "2026-03-09T07-15-00Z.jpg", ".hidden.jpg", "b.jpg.part", "x.txt"]
        {
            put(name);
        }
        let (client, names) = service(|number| match number {
            0 => reply("503 X", "Retry-After: 0\r\n", "{}"),
            2 => reply("400 X", "", r#"{"error": "it is no picture"}"#),
            _ => cat(),
        });
        let out = private.append(&RepoPath::from_text("out").unwrap()).unwrap();
        let tally = once(&folder, &private, &client, Some(out));
        assert_eq!(tally, Tally { classes: [("cat".to_owned(), 1)].into(), refused: 1 });
        put("2026-03-09T09-15-00Z.jpg");
        assert_eq!(once(&folder, &private, &client, None).classes["cat"], 1);
        assert_eq!(once(&folder, &private, &client, None), Tally::default());
        let told = names.lock().unwrap().clone();
        let expected = [7, 7, 8, 9].map(|it| format!("2026-03-09T0{it}-15-00Z.jpg 2026-03-09T0{it}:15:00Z"));
        assert_eq!(told, expected);
        let out = private.read(&RepoPath::from_text("out").unwrap()).unwrap();
        let lines: Vec<Value> =
            String::from_utf8(out).unwrap().lines().map(|it| serde_json::from_str(it).unwrap()).collect();
        assert_eq!((&lines[0]["class"], &lines[0]["version"]), (&json!("cat"), &json!("pets@v0.1.0")));
        assert_eq!((&lines[1]["status"], &lines[1]["error"]), (&json!(400), &json!("it is no picture")));
    }

    #[test]
    fn a_wrong_clock_and_a_long_name_give_no_frame_up() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::create(&temp.path().join("private")).unwrap();
        let root = Root::create(&temp.path().join("frames")).unwrap();
        let long = format!("{}.jpg", "x".repeat(240));
        for name in ["1903-03-09T08-15-00Z.jpg", "9000-03-09T08-15-00Z.jpg", &long] {
            root.write(&RepoPath::from_text(name).unwrap(), b"end", Sync::Later).unwrap();
        }
        let (client, names) = service(|_| cat());
        assert_eq!(once(root.path(), &private, &client, None).classes["cat"], 3);
        let told = names.lock().unwrap().clone();
        assert_eq!(told[..2], ["1903-03-09T08-15-00Z.jpg ", "9000-03-09T08-15-00Z.jpg "]);
        let (name, captured) = told[2].split_once(' ').unwrap();
        assert_eq!((name, captured.is_empty()), (&long[..LONGEST_NAME], false));
    }

    #[test]
    fn a_half_written_file_waits_until_it_is_whole() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::create(&temp.path().join("private")).unwrap();
        let folder = temp.path().join("frames");
        let root = Root::create(&folder).unwrap();
        let mut file = root.append(&RepoPath::from_text("a.jpg").unwrap()).unwrap();
        let slow = thread::spawn(move || {
            for _ in 0..8 {
                file.write_all(b"part ").unwrap();
                thread::sleep(SETTLED / 3);
            }
            file.write_all(b"end").unwrap();
        });
        let (client, names) = service(|_| cat());
        once(&folder, &private, &client, None);
        assert!(slow.is_finished());
        assert_eq!(names.lock().unwrap().len(), 1);
    }

    #[test]
    fn a_note_that_was_cut_off_counts_for_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let private = Root::open(temp.path()).unwrap();
        let place = RepoPath::from_text("watch/x").unwrap();
        private.write(&place, b"\"a.jpg\"\n\"b.j", Sync::Later).unwrap();
        let (sent, mut memory) = remembered(&private, &place).unwrap();
        assert_eq!(sent, ["a.jpg".to_owned()].into());
        memory.write_all(b"\"b.jpg\"\n").unwrap();
        assert_eq!(remembered(&private, &place).unwrap().0.len(), 2);
    }

    #[test]
    fn names_that_are_times_are_read() {
        assert_eq!(taken("2026-03-09T08-15-00Z.jpg").unwrap(), "2026-03-09T08:15:00Z");
        assert_eq!(taken("2026-03-09T08-15-00.250Z.jpg").unwrap(), "2026-03-09T08:15:00.25Z");
        for name in ["IMG_0001.jpg", "2026-03-09.jpg", "2026-13-09T08-15-00Z.jpg", "T.jpg", "x"] {
            assert_eq!(taken(name), None, "{name}");
        }
        assert_eq!(moment(1_700_000_000_500_000_000).unwrap(), "2023-11-14T22:13:20.5Z");
    }
}
