//! nginx as a child: a new configuration is tested, switched to at once, reloaded, and seen to be served.
//!
//! Below the directory: `generations/N/` (configurations; the last two are kept), `current` (a link to the one nginx reads),
//! `generation.sock` (answers the number of the one it serves), `nginx.pid`.

use std::io::ErrorKind;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixStream;
use tokio::process::{Child, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use super::log::Log;
use super::workers;
use crate::model::nginx::{Build, Files, Host, SNI_FILE, WORKERS};

/// How long `nginx -V` and `nginx -t` may take.
const COMMAND: Duration = Duration::from_secs(10);
/// How long a reload may take.
const RELOAD: Duration = Duration::from_secs(10);
/// For how long only the new generation must answer. nginx lets old workers accept for 100 ms beside new ones.
const SETTLED: Duration = Duration::from_millis(150);

/// A running nginx.
///
/// If the agent is killed nginx lives on, but not for long: the agent is the container's first process, and with that one the
/// kernel ends all others.
pub struct Nginx {
    binary: PathBuf,
    host: Host,
    child: Child,
    log: Log,
    generation: u64,
    files: Files,
}

/// What became of a new configuration.
#[derive(Debug, Eq, PartialEq)]
pub enum Outcome {
    /// It is what is served already.
    Unchanged,
    /// It is served now.
    Reloaded {
        /// The configuration's number.
        generation: u64,
    },
    /// It is not served; the last good one is.
    Rejected {
        /// Why, in nginx's words where there are any.
        message: String,
    },
}

/// Finds out what to render for: the nginx at `binary`, with `directory` to write to and the port for connections told apart by name.
pub async fn inspect(binary: &Path, directory: &Path, sni_listen: u16) -> anyhow::Result<Host> {
    Host::check_directory(directory).map_err(anyhow::Error::msg)?;
    let build = Build::parse(&output(Command::new(binary).arg("-V")).await?.1).map_err(anyhow::Error::msg)?;
    // Only root changes the user of its workers, and stops if there is no such user.
    let user = (Uid::effective().is_root() && !has_user(&build.user)).then(|| "root".to_owned());
    let ipv6 = TcpListener::bind("[::]:0").is_ok();
    let (_, open_files) = getrlimit(Resource::RLIMIT_NOFILE).context("can't read the limit of open files")?;
    Ok(Host { build, directory: directory.to_owned(), ipv6, open_files, user, sni_listen })
}

/// Reads the file itself: `getpwnam` of a static executable would load libraries of whatever image this is.
fn has_user(name: &str) -> bool {
    std::fs::read_to_string("/etc/passwd").is_ok_and(|users| users.lines().any(|line| line.split(':').next() == Some(name)))
}

impl Nginx {
    /// Starts the nginx at `binary` with a configuration for `host`.
    pub async fn start(binary: &Path, host: Host, files: Files) -> anyhow::Result<Self> {
        // An earlier agent in this pod may have left its own behind; nginx does not bind a socket that exists.
        for left in ["current", "generation.sock", "nginx.pid"] {
            absent(std::fs::remove_file(host.directory.join(left)))?;
        }
        absent(std::fs::remove_dir_all(host.directory.join("generations")))?;

        let generation = 1;
        write(&host, generation, &files)?;
        test(binary, &host, generation).await?;
        switch(&host, generation)?;
        tracing::info!(version = host.build.version, directory = %host.directory.display(), ipv6 = host.ipv6, "starting nginx");
        let mut child = command(binary, &host, &host.directory.join("current"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("can't start {}", binary.display()))?;
        let log = Log::follow(child.stderr.take());
        let mut nginx = Self { binary: binary.to_owned(), host, child, log, generation, files };
        nginx.served(generation).await?;
        Ok(nginx)
    }

    /// The records of sessions that ended, once. Whoever runs nginx must read them.
    pub fn take_access_log(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// The process number of its first process, while that runs.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// What to render configurations for.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Closes the region's own port, and goes on with all else.
    pub async fn close_own_port(&mut self) -> Outcome {
        let mut files = self.files.clone();
        files.insert(SNI_FILE.into(), String::new());
        self.apply(files).await
    }

    /// Serves another configuration, or goes on with the last good one. Connections stay open either way.
    pub async fn apply(&mut self, files: Files) -> Outcome {
        if files == self.files {
            return Outcome::Unchanged;
        }
        // A number is never used twice, so that an answer is never mistaken.
        let last_good = self.generation_in_use();
        self.generation += 1;
        let generation = self.generation;
        match self.reload(generation, &files).await {
            Ok(()) => {
                self.files = files;
                self.forget_all_but(&[last_good, generation]);
                Outcome::Reloaded { generation }
            }
            Err(error) => {
                self.return_to(last_good);
                self.forget_all_but(&[last_good]);
                Outcome::Rejected { message: format!("{error:#}") }
            }
        }
    }

    /// Waits for nginx to end. It has no reason to.
    pub async fn exited(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Ends nginx: open connections have `grace` to end first.
    pub async fn stop(mut self, grace: Duration) {
        let soon = Duration::from_secs(2);
        for (signal, patience) in [(Signal::SIGQUIT, grace), (Signal::SIGTERM, soon), (Signal::SIGKILL, soon)] {
            self.signal(signal);
            if timeout(patience, self.child.wait()).await.is_ok() {
                tracing::info!(%signal, "nginx has ended");
                return;
            }
        }
    }

    async fn reload(&mut self, generation: u64, files: &Files) -> anyhow::Result<()> {
        write(&self.host, generation, files)?;
        test(&self.binary, &self.host, generation).await?;
        switch(&self.host, generation)?;
        self.log.forget();
        self.read_again();
        self.served(generation).await
    }

    /// Back to a configuration that was served before, in case nginx took up the other one in part or too late.
    fn return_to(&self, generation: u64) {
        if self.generation_in_use() != generation {
            match switch(&self.host, generation) {
                Ok(()) => self.read_again(),
                Err(error) => {
                    tracing::error!(error = format!("{error:#}"), generation, "can't return to the last good configuration")
                }
            }
        }
    }

    /// Makes nginx read its configuration again. The workers that it has go on until what they carry has ended.
    fn read_again(&self) {
        if let Some(master) = self.id() {
            workers::end_oldest(master, workers::MOST - WORKERS);
        }
        self.signal(Signal::SIGHUP);
    }

    /// Waits until `generation`, and no other, is what nginx serves.
    async fn served(&mut self, generation: u64) -> anyhow::Result<()> {
        let (socket, want) = (self.host.socket(), generation.to_string());
        let deadline = Instant::now() + RELOAD;
        let mut since = None;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("nginx ended ({status}): {}", self.log.last_error());
            }
            let now = Instant::now();
            match timeout(RELOAD, ask(&socket)).await {
                Ok(Ok(answer)) if answer == want => {
                    if now.duration_since(*since.get_or_insert(now)) >= SETTLED {
                        return Ok(());
                    }
                }
                _ => since = None,
            }
            if now > deadline || self.log.gave_up() {
                bail!("nginx did not take up the configuration: {}", self.log.last_error());
            }
            sleep(Duration::from_millis(10)).await;
        }
    }

    /// The generation nginx was last told to read.
    fn generation_in_use(&self) -> u64 {
        let target = std::fs::read_link(self.host.directory.join("current")).ok();
        target.and_then(|path| path.file_name()?.to_str()?.parse().ok()).unwrap_or(self.generation)
    }

    fn forget_all_but(&self, keep: &[u64]) {
        let Ok(entries) = self.host.directory.join("generations").read_dir() else { return };
        for entry in entries.flatten() {
            if !keep.iter().any(|generation| entry.file_name().to_str() == Some(&generation.to_string())) {
                // What can't be removed is only in the way of the disk.
                let _ = std::fs::remove_dir_all(entry.path());
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // A process that has ended meanwhile needs no signal, and is noticed where it is waited for.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Nginx {
    /// Killing the master would leave its workers behind; asking it to end takes them along.
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
    }
}

/// Whether nginx could listen on a port it does not listen on yet.
pub(super) fn can_listen(port: u16) -> Result<(), String> {
    TcpListener::bind(("0.0.0.0", port)).map(drop).map_err(|error| error.to_string())
}

/// nginx told to use nothing outside the directory, not even for the log it opens before it reads its configuration.
fn command(binary: &Path, host: &Host, configuration: &Path) -> Command {
    let mut command = Command::new(binary);
    command.arg("-p").arg(&host.directory).args(["-e", "stderr", "-c"]).arg(configuration.join("nginx.conf"));
    command
}

async fn test(binary: &Path, host: &Host, generation: u64) -> anyhow::Result<()> {
    let (good, text) = output(command(binary, host, &directory(host, generation)).arg("-t")).await?;
    if good {
        return Ok(());
    }
    let error = text.lines().find(|line| line.contains("[emerg]")).unwrap_or(&text);
    Err(anyhow!("nginx -t refuses the configuration: {}", super::log::without_time(error)))
}

/// Runs a command to its end: whether it succeeded, and what it wrote to stderr, where nginx writes everything.
async fn output(command: &mut Command) -> anyhow::Result<(bool, String)> {
    let name = command.as_std().get_program().display().to_string();
    let output = timeout(COMMAND, command.stdin(Stdio::null()).kill_on_drop(true).output()).await;
    let output = output.with_context(|| format!("{name} does not come to an end"))?.with_context(|| format!("can't run {name}"))?;
    Ok((output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

fn directory(host: &Host, generation: u64) -> PathBuf {
    host.directory.join("generations").join(generation.to_string())
}

fn write(host: &Host, generation: u64, files: &Files) -> anyhow::Result<()> {
    let directory = directory(host, generation);
    let context = || format!("can't write below {}", directory.display());
    std::fs::create_dir_all(directory.join("routes")).with_context(context)?;
    std::fs::write(directory.join("generation.conf"), host.generation(generation)).with_context(context)?;
    files.iter().try_for_each(|(path, text)| std::fs::write(directory.join(path), text)).with_context(context)
}

/// Renaming a link over another is one step: nginx reads the whole old or the whole new configuration.
fn switch(host: &Host, generation: u64) -> anyhow::Result<()> {
    let (link, next) = (host.directory.join("current"), host.directory.join("next"));
    absent(std::fs::remove_file(&next))?;
    std::os::unix::fs::symlink(directory(host, generation), &next)
        .and_then(|()| std::fs::rename(&next, &link))
        .with_context(|| format!("can't switch {} to generation {generation}", link.display()))
}

/// Asks which generation answers.
async fn ask(socket: &Path) -> std::io::Result<String> {
    let mut answer = String::new();
    UnixStream::connect(socket).await?.read_to_string(&mut answer).await?;
    Ok(answer)
}

/// The result of removing something, which may be gone already.
fn absent(removed: std::io::Result<()>) -> anyhow::Result<()> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).context("can't remove what an earlier agent left behind"),
        _ => Ok(()),
    }
}
