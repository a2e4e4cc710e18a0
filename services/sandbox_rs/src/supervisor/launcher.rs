//! Starts zygotes and asks them for programs. Started with exec from one thread that lives as long as the supervisor:
//! a process that holds threads is never forked, and the kernel's parent-death signal goes by thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, oneshot};

use crate::inside::wire::{Configure, LARGEST_PACKET, Spawn, Spawned};
use crate::layers::{descriptors, process, weakened};
use crate::readiness::registered;
use crate::verdict::Fault;

/// How to start an interpreter that becomes a zygote, or that tries the layers.
#[derive(Clone, Debug)]
pub struct Interpreter {
    pub executable: PathBuf,
    /// The script that loads the native module and serves.
    pub inside_script: PathBuf,
    pub native_module: PathBuf,
    /// Goes on the search path of workflow scripts.
    pub workflow_library: PathBuf,
    /// What PATH names inside: a directory with nothing but the interpreter.
    pub interpreter_directory: PathBuf,
    pub preload: String,
}

impl Interpreter {
    /// Isolated from the environment, from the user's and the site's packages.
    pub fn command(&self, role: &str) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .args(["-I", "-S", "-X", "utf8"])
            .arg(&self.inside_script)
            .arg(&self.native_module)
            .arg(role)
            .arg(&self.workflow_library)
            .arg(&self.preload)
            .env_clear()
            .env("PATH", &self.interpreter_directory)
            // Symbols are looked up once, in the zygote, and not in every process forked from it.
            .env("LD_BIND_NOW", "1")
            // One heap for all threads of a program, of which one runs at a time; each has one of its own otherwise.
            .env("MALLOC_ARENA_MAX", "1")
            .current_dir("/");
        if weakened::is_off("environment") {
            command.envs(std::env::vars_os());
        }
        // The probe says what the kernel can do, whatever a test has switched off.
        if role != "probe" {
            weakened::hand_on(&mut command);
        }
        command
    }
}

/// The thread that starts processes.
pub struct Spawner {
    orders: mpsc::Sender<(Command, oneshot::Sender<io::Result<Child>>)>,
}

impl Spawner {
    pub fn start() -> io::Result<Self> {
        let (orders, queue) = mpsc::channel::<(Command, oneshot::Sender<io::Result<Child>>)>();
        std::thread::Builder::new().name("zygote-spawner".to_owned()).spawn(move || {
            for (mut command, answer) in queue {
                if let Err(Ok(mut unwanted)) = answer.send(command.spawn()) {
                    // Nobody waits for it any more; both calls fail only if it is gone already.
                    let _ = unwanted.kill();
                    let _ = unwanted.wait();
                }
            }
        })?;
        Ok(Spawner { orders })
    }

    pub async fn spawn(&self, command: Command) -> Result<Child, Fault> {
        let gone = || Fault::Internal("the thread that starts zygotes has ended".to_owned());
        let (answer, child) = oneshot::channel();
        self.orders.send((command, answer)).map_err(|_| gone())?;
        Ok(child.await.map_err(|_| gone())??)
    }
}

/// One running zygote.
struct Zygote {
    control: AsyncFd<OwnedFd>,
    process: Child,
}

/// A zygote that has not forked after this long never will.
const FORK_DEADLINE: Duration = Duration::from_secs(10);
/// A zygote has imported what it preloads within this.
const PRELOAD_DEADLINE: Duration = Duration::from_secs(300);
/// One that is not needed any more ends by itself within this.
const RETIREMENT: Duration = Duration::from_secs(2);

impl Drop for Zygote {
    fn drop(&mut self) {
        // It may have ended by itself; either way it must not stay as a zombie.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Sends a packet, waiting for room.
pub async fn send(socket: &AsyncFd<OwnedFd>, bytes: &[u8], attached: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<_> = attached.iter().map(AsRawFd::as_raw_fd).collect();
    socket.async_io(Interest::WRITABLE, |inner| descriptors::send(inner.as_fd(), bytes, &raw)).await
}

/// Receives a packet; an empty one means that the other side is gone.
pub async fn receive(socket: &AsyncFd<OwnedFd>) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut buffer = vec![0; LARGEST_PACKET.min(8192)];
    let (count, attached) =
        socket.async_io(Interest::READABLE, |inner| descriptors::receive(inner.as_fd(), &mut buffer)).await?;
    buffer.truncate(count);
    Ok((buffer, attached))
}

/// Registers a descriptor of ours with the runtime.
pub fn watched(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: fcntl without pointers on a descriptor that we own.
    unsafe {
        let flags = libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL);
        if flags < 0 || libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    registered(descriptor)
}

impl Zygote {
    async fn start(
        spawner: &Spawner,
        interpreter: &Interpreter,
        role: &str,
        configure: &Configure,
    ) -> Result<Self, Fault> {
        Zygote::preload(spawner, interpreter, role).await?.configure(configure).await
    }

    /// Starts its interpreter, which imports what programs want while it waits for its configuration.
    async fn preload(spawner: &Spawner, interpreter: &Interpreter, role: &str) -> Result<Self, Fault> {
        let (ours, theirs) = descriptors::packet_pair()?;
        let mut command = interpreter.command(role);
        // In its process group is only what it forks, until that is known here.
        command.stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::inherit()).process_group(0);
        let process = spawner.spawn(command).await?;
        Ok(Zygote { control: watched(ours)?, process })
    }

    /// Waits until it can fork.
    async fn configure(mut self, configure: &Configure) -> Result<Self, Fault> {
        let packet = serde_json::to_vec(configure).map_err(|error| Fault::Internal(error.to_string()))?;
        send(&self.control, &packet, &[]).await?;
        match self.answer_within(PRELOAD_DEADLINE).await? {
            (Spawned::Ready, _) => Ok(self),
            (Spawned::Failed(failure), _) => Err(failure.into()),
            (other, _) => Err(Fault::Internal(format!("a zygote answered its configuration with {other:?}"))),
        }
    }

    /// One that says nothing is killed. What it said until then counts: it may have let a program go.
    async fn answer_within(&mut self, time: Duration) -> Result<(Spawned, Vec<OwnedFd>), Fault> {
        if let Ok(answered) = tokio::time::timeout(time, self.answer()).await {
            return answered;
        }
        tracing::warn!(pid = self.process.id(), "a zygote does not answer");
        self.process.kill()?;
        self.answer().await
    }

    /// Waits until it has ended by itself: it may have told of a program that it has not let go yet.
    async fn retire(self) {
        let ended = async {
            descriptors::end_of_packets(self.control.get_ref().as_fd())?;
            receive(&self.control).await
        };
        if !matches!(tokio::time::timeout(RETIREMENT, ended).await, Ok(Ok(_))) {
            tracing::warn!(pid = self.process.id(), "a zygote does not end");
        }
    }

    async fn answer(&self) -> Result<(Spawned, Vec<OwnedFd>), Fault> {
        let (packet, attached) = receive(&self.control).await?;
        if packet.is_empty() {
            return Err(Fault::Internal("a zygote has ended".to_owned()));
        }
        let spawned = serde_json::from_slice(&packet)
            .map_err(|error| Fault::Internal(format!("a zygote said something unreadable: {error}")))?;
        Ok((spawned, attached))
    }

    async fn fork(&mut self, spawn: &Spawn, attached: &[OwnedFd]) -> Result<(i32, OwnedFd), Fault> {
        let packet = serde_json::to_vec(spawn).map_err(|error| Fault::Internal(error.to_string()))?;
        let borrowed: Vec<_> = attached.iter().map(AsFd::as_fd).collect();
        send(&self.control, &packet, &borrowed).await?;
        match self.answer_within(FORK_DEADLINE).await? {
            (Spawned::Forked { pid }, mut descriptors) if descriptors.len() == 1 => Ok((pid, descriptors.remove(0))),
            (Spawned::Forked { pid }, _) => {
                // Without its descriptor it cannot be watched. It is our child, so that its number stays its own.
                tokio::task::spawn_blocking(move || process::end_unwatched(pid));
                Err(no_descriptors())
            }
            (Spawned::Failed(failure), _) => Err(failure.into()),
            (other, _) => Err(Fault::Internal(format!("a zygote answered a request with {other:?}"))),
        }
    }
}

/// Takes what a zygote forked and died before it could say so. Such a process ends by itself; see `zygote::Leash`.
async fn reap_untold(group: i32) {
    let deadline = Instant::now() + LAST_OF_A_GROUP;
    while Instant::now() < deadline {
        match process::reap_group(group, None) {
            Ok(true) => tokio::time::sleep(Duration::from_millis(5)).await,
            Ok(false) => return,
            Err(error) => return tracing::error!(%error, "what a zygote has left is not known"),
        }
    }
    tracing::error!(group, "a process that a zygote has left does not end");
}

/// A descriptor that was sent to us did not arrive.
pub fn no_descriptors() -> Fault {
    io::Error::from_raw_os_error(libc::EMFILE).into()
}

/// What a zygote has left is gone, or known and in a session of its own, within this.
const LAST_OF_A_GROUP: Duration = Duration::from_secs(10);

/// Milliseconds before a fork that found too many processes is tried again. Nothing has run yet, so that it is safe.
const PAUSES: [u64; 4] = [5, 20, 80, 320];

/// Zygotes that hold the same modules, used in turn. A zygote that has ended or failed, or has served its number of
/// programs, is replaced before the next program (fresh addresses and hash seeds, and no doubt outlives it).
pub struct Pool {
    role: &'static str,
    spawner: Arc<Spawner>,
    interpreter: Arc<Interpreter>,
    configure: Arc<Configure>,
    places: Vec<Mutex<Place>>,
    turn: AtomicUsize,
    programs_per_zygote: u64,
    pub replaced: AtomicU64,
}

struct Place {
    zygote: Option<Zygote>,
    served: u64,
}

/// Zygotes of one role that are not configured yet.
pub struct Preloading {
    role: &'static str,
    zygotes: Vec<Zygote>,
}

impl Preloading {
    pub async fn start(
        role: &'static str,
        count: usize,
        spawner: &Spawner,
        interpreter: &Interpreter,
    ) -> Result<Self, Fault> {
        let zygotes = (0..count).map(|_| Zygote::preload(spawner, interpreter, role));
        Ok(Preloading { role, zygotes: try_join_all(zygotes).await? })
    }
}

impl Pool {
    pub async fn start(
        preloading: Preloading,
        programs_per_zygote: u64,
        spawner: Arc<Spawner>,
        interpreter: Arc<Interpreter>,
        configure: Arc<Configure>,
    ) -> Result<Self, Fault> {
        let Preloading { role, zygotes } = preloading;
        let started = try_join_all(zygotes.into_iter().map(|zygote| zygote.configure(&configure))).await?;
        let places = started.into_iter().map(|zygote| Mutex::new(Place { zygote: Some(zygote), served: 0 })).collect();
        let (turn, replaced) = (AtomicUsize::new(0), AtomicU64::new(0));
        Ok(Pool { role, spawner, interpreter, configure, places, turn, programs_per_zygote, replaced })
    }

    /// Forks a program. Runs to its end even if the caller goes away, because an answer that nobody reads would be taken
    /// for that of the next request. `owned` makes what ends and reaps the program when it is dropped: nobody may take it.
    pub async fn fork<Process: Send + 'static>(
        self: &Arc<Self>,
        spawn: Spawn,
        attached: Vec<OwnedFd>,
        owned: fn(i32, OwnedFd) -> Result<Process, Fault>,
    ) -> Result<Process, Fault> {
        let pool = self.clone();
        tokio::spawn(async move {
            let (pid, descriptor) = pool.fork_in_turn(&spawn, &attached).await?;
            owned(pid, descriptor)
        })
        .await
        .map_err(|error| Fault::Internal(error.to_string()))?
    }

    async fn fork_in_turn(&self, spawn: &Spawn, attached: &[OwnedFd]) -> Result<(i32, OwnedFd), Fault> {
        let index = self.turn.fetch_add(1, Ordering::Relaxed) % self.places.len();
        let mut place = self.places[index].lock().await;
        // A zygote that is dead, or that did not fork, is replaced once; a fresh one that fails as well is reported. One
        // that found something used up is kept: a new one would find the same.
        let mut pauses = PAUSES.iter();
        let mut replaced = false;
        loop {
            if place.served >= self.programs_per_zygote
                && let Some(zygote) = place.zygote.take()
            {
                tokio::spawn(zygote.retire());
            }
            let mut zygote = match place.zygote.take() {
                Some(zygote) => zygote,
                None => {
                    self.replaced.fetch_add(1, Ordering::Relaxed);
                    place.served = 0;
                    Zygote::start(&self.spawner, &self.interpreter, self.role, &self.configure).await?
                }
            };
            match zygote.fork(spawn, attached).await {
                Ok(forked) => {
                    place.served += 1;
                    place.zygote = Some(zygote);
                    return Ok(forked);
                }
                Err(fault @ Fault::Exhausted { .. }) => {
                    place.zygote = Some(zygote);
                    match pauses.next() {
                        Some(pause) if fault.passes() => tokio::time::sleep(Duration::from_millis(*pause)).await,
                        _ => return Err(fault),
                    }
                }
                Err(fault) => {
                    let group = zygote.process.id() as i32;
                    drop(zygote);
                    tokio::spawn(reap_untold(group));
                    if replaced {
                        return Err(fault);
                    }
                    replaced = true;
                    tracing::warn!(role = self.role, %fault, "zygote replaced");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    /// A shell in the place of a zygote, and the end of what it writes.
    fn shell(script: &str) -> (Zygote, File) {
        let (ours, theirs) = descriptors::packet_pair().unwrap();
        let (said, say) = descriptors::pipe().unwrap();
        let process = Command::new("sh").args(["-c", script]).stdin(theirs).stdout(say).spawn().unwrap();
        (Zygote { control: watched(ours).unwrap(), process }, File::from(said))
    }

    #[tokio::test]
    async fn a_zygote_that_retires_ends_what_it_is_doing() {
        let (zygote, mut said) = shell("cat > /dev/null; sleep 0.2; echo done");
        zygote.retire().await;
        let mut text = String::new();
        said.read_to_string(&mut text).unwrap();
        assert_eq!(text, "done\n");
    }

    #[tokio::test]
    async fn a_zygote_that_hangs_is_killed() {
        let (mut zygote, _said) = shell("kill -STOP $$");
        let answered = zygote.answer_within(Duration::from_millis(50)).await;
        assert!(answered.unwrap_err().to_string().contains("has ended"));
    }
}
