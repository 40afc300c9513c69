//! What a run is made of, what connects it to the outside, and how it ended.
//!
//! The command line fills a [`RunConfig`], the machine runs it and answers with a [`RunOutcome`].

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crossbeam::channel::Receiver;
use thiserror::Error;

use crate::observe::counters::Counters;
use crate::processor::HostError;

/// One run of one machine.
#[derive(Clone, Debug)]
pub struct RunConfig {
    /// The kernel: bzImage, ELF with a PVH note, or multiboot 1.
    pub kernel: Image,
    /// The initial RAM disk, for kernels that take one.
    pub initrd: Option<Image>,
    /// Multiboot modules, in order.
    pub modules: Vec<Module>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Virtual CPUs.
    pub cpus: u32,
    /// Guest RAM in bytes, a multiple of 4 KiB.
    pub memory: u64,
    /// The processor that the guest sees.
    pub cpu: CpuModel,
    /// What executes the guest.
    pub processor: ProcessorKind,
    /// Whether the guest is offered VMX.
    pub nested: Nested,
    /// What guest time follows.
    pub clock: ClockKind,
    /// The source of RDRAND and RDSEED.
    pub seed: u64,
    /// Host time after which the run ends.
    pub timeout: Option<Duration>,
}

/// A file for the guest, in memory, with the name to call it by in messages.
#[derive(Clone)]
pub struct Image {
    /// A path, or what stands for one.
    pub name: String,
    /// The content, as it was read: for the VMM inside L1 a second copy of a kernel is worth avoiding.
    pub bytes: Arc<Vec<u8>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} bytes)", self.name, self.bytes.len())
    }
}

/// A multiboot module: a file and its string.
#[derive(Clone, Debug)]
pub struct Module {
    /// The file.
    pub image: Image,
    /// The module's string, by custom its name and arguments.
    pub string: String,
}

/// `PROFILE[,+feature,-feature]`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuModel {
    /// A profile's name, or `max`.
    pub profile: String,
    /// Features added and removed, in order.
    pub changes: Vec<FeatureChange>,
}

/// One `+feature` or `-feature`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FeatureChange {
    /// Offered although the profile lacks it.
    Add(String),
    /// Hidden although the profile has it.
    Remove(String),
}

/// What executes the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProcessorKind {
    /// The software processor: L1 and L2, on any host.
    Soft,
    /// The host's /dev/kvm.
    Kvm,
    /// The kernel's own nested VMX, audited.
    KvmNested,
}

/// Whether the guest is offered VMX.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Nested {
    /// The guest sees VMX and may be a hypervisor.
    On,
    /// The guest sees a processor without VMX.
    Off,
}

/// What guest time follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClockKind {
    /// The count of retired instructions: the same run twice is the same run.
    Virtual,
    /// Real time.
    Host,
}

/// What connects a run to the outside.
pub struct Console {
    /// Bytes for the guest's serial port. A disconnected channel is a line on which nothing more will come.
    pub input: Receiver<u8>,
    /// Where the guest's serial port writes; each write is shown at once.
    pub output: Box<dyn Write + Send>,
    /// The run's own count of retired instructions, stored before each exit is handled, read when a line of the
    /// console is stamped.
    pub retired: Retired,
    /// Asks the run to end.
    pub stop: Stop,
}

/// The number of instructions retired so far, all levels together, as others may read it.
#[derive(Clone, Default, Debug)]
pub struct Retired(Arc<AtomicU64>);

impl Retired {
    /// Publishes the count.
    #[inline]
    pub fn publish(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }
    /// The count as last published.
    #[must_use]
    pub fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a run is asked to end from outside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StopReason {
    /// Ctrl-A X, or Ctrl-C while the terminal is not the guest's.
    User,
    /// SIGTERM or SIGHUP, by its number.
    Signal(i32),
    /// `--timeout` has passed.
    Timeout,
}

/// A request to end the run: made once by any thread, polled by the run loop between two entries, and told to whoever
/// has to be woken.
#[derive(Clone, Default)]
pub struct Stop(Arc<StopState>);

type Wake = Box<dyn Fn() + Send>;

#[derive(Default)]
struct StopState {
    reason: std::sync::OnceLock<StopReason>,
    wakes: Mutex<Vec<Wake>>,
}

impl Stop {
    /// Asks for the end; the first reason given stays. Not for signal handlers.
    pub fn request(&self, reason: StopReason) {
        let _ = self.0.reason.set(reason);
        for wake in self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            wake();
        }
    }
    /// The reason, once the end was asked for.
    #[inline]
    #[must_use]
    pub fn requested(&self) -> Option<StopReason> {
        self.0.reason.get().copied()
    }
    /// Has `wake` called on each request, by the requesting thread: it kicks a vCPU that may not return by itself.
    pub fn on_request(&self, wake: impl Fn() + Send + 'static) {
        let mut wakes = self.0.wakes.lock().unwrap_or_else(PoisonError::into_inner);
        if self.requested().is_some() {
            wake();
        }
        wakes.push(Box::new(wake));
    }
}

/// How a run ended and what it did.
#[derive(Clone, Debug)]
pub struct RunOutcome {
    /// Why it ended.
    pub end: End,
    /// What was counted.
    pub counters: Counters,
    /// Digest of the CPUID offered, in hexadecimal; empty where the host's CPUID was passed on.
    pub cpuid_digest: String,
    /// The last exits, oldest first, one line each; for the message when a guest ended badly.
    pub last_exits: Vec<String>,
}

/// Why a run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The guest switched the machine off.
    PowerOff,
    /// The guest reset the machine.
    Reset,
    /// The guest wrote this value to the debug-exit port, 0xF4.
    DebugExit(u32),
    /// A triple fault shut L1 down.
    TripleFault,
    /// Every vCPU waits for an event that cannot come.
    Halted,
    /// A VMX abort in L1, with its indicator. SDM Vol. 3, "VMX Aborts".
    VmxAbort(u32),
    /// L0 made a VMCS that the processor refused, or otherwise broke an invariant of its own: the broken rule.
    Broken(String),
    /// The end was asked for from outside.
    Stopped(StopReason),
}

/// Why a run could not take place or go on. Nothing that a running guest does ends up here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RunError {
    /// The host refused something.
    #[error(transparent)]
    Host(#[from] HostError),
    /// A file for the guest is not what it should be.
    #[error("{file}: {reason}")]
    Image {
        /// Its name.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The options do not go together, or name something that does not exist.
    #[error("{0}")]
    Config(String),
    /// Something is not there on this host or in this program; `remedy` says what to do.
    #[error("{what}; {remedy}")]
    Unavailable {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
}
