//! What a long preparation shows on stderr: a bar on a terminal, a line a step elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

const PERCENT: u64 = 100;
const TICK: Duration = Duration::from_millis(100);

/// One shown step after another.
pub struct Progress {
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Nothing shown yet.
    #[must_use]
    pub fn new() -> Self {
        Self { bar: std::io::stderr().is_terminal().then(bar) }
    }
    /// Begins a step.
    pub fn step(&self, what: &str) {
        match &self.bar {
            Some(bar) => {
                bar.set_position(0);
                bar.set_message(what.to_owned());
            }
            None => eprintln!("testudo: {what}"),
        }
    }
    /// How much of the step is done; nothing where there is no bar.
    pub fn percent(&self, done: f64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done.clamp(0.0, PERCENT as f64) as u64);
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(PERCENT), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("testudo: {spinner} {msg} {bar:30} {percent}%");
    bar.set_style(style.expect("the template is a constant"));
    bar.enable_steady_tick(TICK);
    bar
}
