//! Runs other programs: with a spinner, or line by line with a time limit.

use std::io::{BufRead, BufReader};
use std::process::Output;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use duct::Expression;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, kill_process};

/// The number of lines of a failed program's output that its error shows.
const TAIL: usize = 30;

/// Shows a message on standard error until it is dropped: with a spinner on a terminal, otherwise
/// as one plain line.
pub struct Doing(ProgressBar);

pub fn doing(what: &str) -> Doing {
    let bar = ProgressBar::new_spinner().with_message(what.to_owned());
    if bar.is_hidden() {
        eprintln!("{what} ...");
    } else {
        let style = ProgressStyle::with_template("{spinner} {msg} … {elapsed}");
        bar.set_style(style.expect("the template is valid"));
        bar.enable_steady_tick(Duration::from_millis(200));
    }
    Doing(bar)
}

impl Doing {
    /// Replaces the message.
    pub fn now(&self, what: &str) {
        if self.0.is_hidden() {
            eprintln!("{what} ...");
        } else {
            self.0.set_message(what.to_owned());
        }
    }
}

impl Drop for Doing {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Runs `command` to its end and returns its output. If it fails, the error shows the last lines of
/// the output.
pub fn step(what: &str, command: &Expression) -> Result<Output> {
    let _doing = doing(what);
    let output = command
        .stdin_null()
        .stdout_capture()
        .stderr_capture()
        .unchecked()
        .run()
        .with_context(|| format!("{what}: cannot start {command:?}"))?;
    if !output.status.success() {
        let said = if output.stderr.is_empty() { &output.stdout } else { &output.stderr };
        bail!("{what}: {}\n{}", output.status, tail(&String::from_utf8_lossy(said)));
    }
    Ok(output)
}

/// The last lines of `text`, indented.
pub fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    last.iter().map(|line| format!("    {line}\n")).collect::<String>().trim_end().to_owned()
}

/// How a program with a time limit ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It exited with this code; a signal counts as code 128 + its number.
    Exit(u8),
    /// It was killed at its time limit.
    TimeUp,
}

/// Runs `command` and passes each line of its standard output to `line` at once. Kills it with all
/// its children after `limit`.
pub fn lines(command: &Expression, limit: Duration, mut line: impl FnMut(&str)) -> Result<End> {
    let deadline = Instant::now() + limit;
    let start = command.stdin_null().unchecked().reader();
    let child = Arc::new(start.with_context(|| format!("cannot start {command:?}"))?);
    let (sender, receiver) = channel();
    std::thread::spawn({
        let child = child.clone();
        move || {
            for text in BufReader::new(&*child).split(b'\n').map_while(Result::ok) {
                if sender.send(text).is_err() {
                    break;
                }
            }
        }
    });
    loop {
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(text) => line(&printed(&text)),
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                child.pids().into_iter().for_each(kill_tree);
                // An incomplete last line shows where it hangs. The channel closes when all of them
                // are gone.
                while let Ok(text) = receiver.recv_timeout(Duration::from_secs(5)) {
                    line(&printed(&text));
                }
                return Ok(End::TimeUp);
            }
        }
    }
    // duct reports the end of the output only after the exit.
    let output = child.try_wait()?.context("a program closed its output and did not exit")?;
    Ok(End::Exit(exit_code(output.status)))
}

fn printed(line: &[u8]) -> String {
    String::from_utf8_lossy(line).trim_end_matches('\r').to_owned()
}

/// The exit code that a shell would report for `status`.
pub fn exit_code(status: std::process::ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// Kills a process and its descendants. A killed cargo would leave its running test behind.
pub fn kill_tree(pid: u32) {
    // Read before the kill, after which the children have another parent.
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let children: Vec<_> = threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| list.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // An error means that it has ended already.
        _ = kill_process(pid, Signal::KILL);
    }
    children.iter().filter_map(|child| child.parse().ok()).for_each(kill_tree);
}

#[cfg(test)]
mod tests {
    use super::*;
    use duct::cmd;

    #[test]
    fn lines_come_one_by_one_and_the_exit_code_with_them() {
        let mut seen = Vec::new();
        let end = lines(
            &cmd!("sh", "-c", "printf 'a\\r\\nb'; exit 7"),
            Duration::from_secs(60),
            |line| {
                seen.push(line.to_owned());
            },
        );
        assert_eq!(end.unwrap(), End::Exit(7));
        assert_eq!(seen, ["a", "b"]);
    }

    #[test]
    fn what_hangs_is_ended_with_its_children() {
        let before = Instant::now();
        let command = cmd!("sh", "-c", "echo $$; printf 'test x ... '; sleep 100; true");
        let mut seen = Vec::new();
        let end = lines(&command, Duration::from_millis(300), |line| seen.push(line.to_owned()));
        assert_eq!(end.unwrap(), End::TimeUp);
        let [pid, begun] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(begun, "test x ... ");
        // The output was closed early, so no process holds it open, not even the sleeping child.
        assert!(before.elapsed() < Duration::from_secs(5));
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }

    #[test]
    fn a_failure_shows_the_end_of_the_output() {
        let command = cmd!("sh", "-c", "seq 1000 >&2; exit 3");
        let error = format!("{:#}", step("counting", &command).unwrap_err());
        assert!(error.starts_with("counting: exit status: 3"), "{error}");
        assert!(error.ends_with(" 1000") && !error.contains(" 900"), "{error}");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let error = step("trying", &cmd!("/nonexistent/program")).unwrap_err();
        assert!(format!("{error:#}").contains("/nonexistent/program"));
    }
}
