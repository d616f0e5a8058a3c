//! A Hub with one repository on this machine: HTTP/1.1, one connection a request.
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

pub const REPO: &str = "owner/tiny";

/// How the Hub behaves.
#[derive(Clone, Default)]
pub struct Rules {
    /// Everything is answered with this status.
    pub status: Option<u16>,
    /// Only who has it is let in.
    pub token: Option<&'static str>,
    /// A body of this file ends after so many bytes.
    pub cut: Option<(&'static str, usize)>,
    /// A cut body does not end: nothing comes any more.
    pub hold: bool,
    /// Answers do not say how long they are.
    pub lengthless: bool,
    /// The repository has changed since.
    pub changed: bool,
    /// So many bodies are refused, while sizes are told.
    pub refusals: usize,
}

#[derive(Clone, Debug)]
pub struct Request {
    pub file: String,
    pub range: String,
    pub authorization: Option<String>,
}

struct State {
    repo: &'static str,
    files: BTreeMap<String, Vec<u8>>,
    rules: Mutex<Rules>,
    requests: Mutex<Vec<Request>>,
    held: Mutex<Vec<TcpStream>>,
    over: AtomicBool,
}

pub struct MockHub {
    address: SocketAddr,
    state: Arc<State>,
    thread: Option<JoinHandle<()>>,
}

impl MockHub {
    /// Serves the files of `dir` as [`REPO`].
    pub fn new(dir: &Path) -> Self {
        Self::with_repo(REPO, dir)
    }

    /// Serves the files of `dir` as `repo`.
    pub fn with_repo(repo: &'static str, dir: &Path) -> Self {
        let entries = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap());
        let files = entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect();
        let state = State {
            repo,
            files,
            rules: Mutex::default(),
            requests: Mutex::default(),
            held: Mutex::default(),
            over: AtomicBool::new(false),
        };
        let state = Arc::new(state);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = state.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.over.load(Ordering::SeqCst) {
                    break;
                }
                // A client that hangs up is part of what is tested.
                let _ = stream.and_then(|stream| shared.answer(stream));
            }
        });
        Self { address, state, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, rules: Rules) {
        *self.state.rules.lock().unwrap() = rules;
    }

    /// What was asked since the last call.
    pub fn requests(&self) -> Vec<Request> {
        std::mem::take(&mut self.state.requests.lock().unwrap())
    }

    /// The files whose bodies were sent since the last call, sorted.
    pub fn fetched(&self) -> Vec<String> {
        let bodies = self.requests().into_iter().filter(|r| r.range != "bytes=0-0" && self.state.files.contains_key(&r.file));
        let mut files: Vec<String> = bodies.map(|r| r.file).collect();
        files.sort();
        files
    }

    pub fn file(&self, name: &str) -> &[u8] {
        &self.state.files[name]
    }
}

impl Drop for MockHub {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
        let mut headers = BTreeMap::new();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.insert(name.to_lowercase(), value.to_owned());
        }
        let prefix = format!("/{}/resolve/main/", self.repo);
        let file = first.split(' ').nth(1).and_then(|path| path.strip_prefix(&prefix)).unwrap_or_default().to_owned();
        let range = headers.remove("range").unwrap_or_default();
        let authorization = headers.remove("authorization");
        self.requests.lock().unwrap().push(Request { file: file.clone(), range: range.clone(), authorization: authorization.clone() });

        let is_body = range != "bytes=0-0";
        let rules = {
            let mut rules = self.rules.lock().unwrap();
            let now = rules.clone();
            rules.refusals -= usize::from(is_body && rules.refusals > 0);
            now
        };
        let welcome = rules.token.is_none_or(|token| authorization.is_some_and(|a| a == format!("Bearer {token}")));
        let refusal = match (rules.status, self.files.get(&file)) {
            (Some(status), _) => Err(status),
            _ if !welcome => Err(401),
            (_, None) => Err(404),
            _ if rules.refusals > 0 && is_body => Err(503),
            (_, Some(bytes)) => Ok(bytes),
        };
        let bytes = match refusal {
            Ok(bytes) => bytes,
            Err(status) => return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"),
        };
        let (start, end) = range.trim_start_matches("bytes=").split_once('-').unwrap();
        let start: usize = start.parse().unwrap();
        let end = end.parse().map_or(bytes.len(), |last: usize| last + 1);
        let body = &bytes[start..end];
        let length = if rules.lengthless { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
        write!(
            stream,
            "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{}\r\nETag: \"{:x}\"\r\nX-Repo-Commit: {}\r\n{length}Connection: close\r\n\r\n",
            end - 1,
            bytes.len(),
            xxhash_rust::xxh3::xxh3_64(bytes),
            if rules.changed { "89abcdef" } else { "01234567" },
        )?;
        let sent = rules.cut.filter(|(name, _)| *name == file).map_or(body.len(), |(_, most)| most.min(body.len()));
        stream.write_all(&body[..sent])?;
        if rules.hold && sent < body.len() {
            self.held.lock().unwrap().push(stream);
        }
        Ok(())
    }
}
