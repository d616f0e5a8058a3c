//! Progress of long work on stderr: a bar on a terminal, elsewhere a plain line now and then.
use indicatif::{ProgressBar, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Time between two plain lines.
const INTERVAL: Duration = Duration::from_secs(15);

/// Progress of one task; the bar is removed when it is dropped.
pub struct Progress {
    label: String,
    total: u64,
    bar: ProgressBar,
    /// When the last plain line was printed; `None` on a terminal.
    plain: Option<Instant>,
}

impl Progress {
    /// A task of `total` steps.
    pub fn new(label: &str, total: u64) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let bar = if terminal { ProgressBar::new(total) } else { ProgressBar::hidden() };
        if let Ok(style) = ProgressStyle::with_template("{prefix} {wide_bar} {pos}/{len} {msg} [{elapsed} < {eta}]") {
            bar.set_style(style);
        }
        bar.set_prefix(label.to_string());
        if terminal {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { label: label.into(), total, bar, plain: (!terminal).then(Instant::now) }
    }

    /// `done` steps are done; `message` says how it stands (a running perplexity, the layer at work).
    pub fn set(&mut self, done: u64, message: &str) {
        self.bar.set_position(done);
        self.bar.set_message(message.to_string());
        if let Some(last) = self.plain.filter(|last| last.elapsed() >= INTERVAL) {
            // A closed stderr is no reason to stop the work.
            let _ = writeln!(std::io::stderr(), "{}", format!("{} {done}/{} {message}", self.label, self.total).trim_end());
            self.plain = Some(last + last.elapsed());
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
