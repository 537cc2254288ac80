//! Commands that end: run at a place, with a bound, their output collected.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// How a command ended and what it said.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Output {
    /// Its standard output, if it succeeded.
    ///
    /// # Errors
    /// Otherwise: how it ended and what it said.
    pub fn success(self) -> Result<String> {
        if self.status.success() {
            return Ok(self.stdout);
        }
        let said = if self.stderr.trim().is_empty() { &self.stdout } else { &self.stderr };
        let said = if said.trim().is_empty() { "it said nothing" } else { said.trim() };
        bail!("{}: {said}", self.status)
    }
}

/// Runs `command` to its end, at most for `bound`; when that is reached it and its children are killed.
///
/// # Errors
/// When it can't be started or takes longer than `bound`. A command that fails is no error here.
pub fn run(command: Command, bound: Duration) -> Result<Output> {
    run_with_input(command, "", bound)
}

/// The same, with something on its standard input.
pub fn run_with_input(mut command: Command, input: &str, bound: Duration) -> Result<Output> {
    let name = describe(&command);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .with_context(|| format!("can't start `{name}`"))?;
    let stdin = child.stdin.take();
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.map(|mut pipe| pipe.write_all(input.as_bytes())));
        let (stdout, stderr) = (scope.spawn(|| collect(stdout)), scope.spawn(|| collect(stderr)));
        let waited = wait(&mut child, bound);
        let read =
            |thread: thread::ScopedJoinHandle<'_, String>| thread.join().map_err(|_| anyhow!("can't read what `{name}` says"));
        let (stdout, stderr) = (read(stdout)?, read(stderr)?);
        // A command that ends without reading its input is no failure of ours.
        drop(writer.join());
        match waited? {
            Some(status) => Ok(Output { status, stdout, stderr }),
            None => bail!("`{name}` took longer than {} s; it had said: {}{}", bound.as_secs(), stdout, stderr),
        }
    })
}

fn wait(child: &mut Child, bound: Duration) -> Result<Option<ExitStatus>> {
    let started = Instant::now();
    let mut interval = Duration::from_millis(2);
    loop {
        if let Some(status) = child.try_wait().context("can't wait for a command")? {
            return Ok(Some(status));
        }
        if started.elapsed() >= bound {
            let group = i32::try_from(child.id()).context("a pid out of range")?;
            killpg(Pid::from_raw(group), Signal::SIGKILL).context("can't end a command")?;
            child.wait().context("can't wait for a command")?;
            return Ok(None);
        }
        thread::sleep(interval);
        interval = (interval * 2).min(Duration::from_millis(50));
    }
}

fn collect(pipe: Option<impl Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What came before a read error still helps.
        drop(pipe.read_to_end(&mut bytes));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The command as one would type it, without the `nsenter` in front.
fn describe(command: &Command) -> String {
    let mut words: Vec<String> = vec![command.get_program().to_string_lossy().into_owned()];
    words.extend(command.get_args().map(|arg| arg.to_string_lossy().into_owned()));
    if let Some(dashes) = words.iter().position(|word| word == "--").filter(|_| words[0] == "nsenter") {
        words.drain(..=dashes);
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_and_status_are_collected() {
        let output = run(shell("echo out; echo err >&2; exit 3"), Duration::from_secs(5)).unwrap();
        assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.status.code()), ("out\n", "err\n", Some(3)));
        assert_eq!(output.success().unwrap_err().to_string(), "exit status: 3: err");
    }

    #[test]
    fn input_reaches_the_command() {
        assert_eq!(run_with_input(shell("cat"), "hello", Duration::from_secs(5)).unwrap().stdout, "hello");
    }

    #[test]
    fn a_command_that_hangs_is_ended_with_its_children() {
        let error = run(shell("echo started; sleep 60 & wait"), Duration::from_millis(300)).unwrap_err().to_string();
        assert!(error.contains("took longer") && error.contains("started"), "{error}");
    }
}
