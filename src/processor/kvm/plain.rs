//! A plain VMM over /dev/kvm: boots a guest that sees no VMX, with KVM's CPUID and with interrupt controllers, timer
//! and LAPICs in the kernel.
//!
//! It is what runs inside L1, and works the same on any host with hardware KVM. It is a second run loop, not a
//! [`Processor`](crate::processor::Processor): KVM is entered once and comes back only for devices. Each vCPU has a
//! thread; the thread that calls [`run`] waits for input, device timers and the end. Nothing polls, and nothing is
//! done ahead of need: under an emulator every instruction of this program counts.
//!
//! A run ends with the guest's ACPI soft-off ([`End::PowerOff`]), its reset by keyboard controller, reset register or
//! ACPI ([`End::Reset`]), a write to the debug-exit port ([`End::DebugExit`]), a triple fault ([`End::TripleFault`]),
//! or on demand ([`End::Stopped`]). A guest that halts all its vCPUs with interrupts off is not noticed: KVM does not
//! tell. Counted are the exits that came to user space.

mod board;
mod crew;
mod kick;
mod pc;
mod recent;
mod turn;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam::channel::{self, Receiver, never, select};

use super::error::KvmError;
use super::host;
use crate::boot::{self, BootSource};
use crate::config::{Console, End, Nested, RunConfig, RunError, RunOutcome, StopReason};
use crate::device::{Peripherals, Platform};
use crate::observe::counters::Counters;
use board::Board;
use crew::Crew;
use pc::Pc;

/// Before looking again whether the guest took input for which it had no room.
const ROOM_AGAIN: Duration = Duration::from_millis(20);

/// What the supervisor is woken for.
enum Event {
    /// A vCPU ended the machine, or KVM cannot go on with it.
    Ended(Result<End, KvmError>),
    /// The devices want to be looked after earlier than they said.
    Due,
    /// The end was asked for from outside.
    Stop,
}

/// Runs the machine until it ends.
///
/// # Errors
/// Something is wrong with the guest's files, or the host refuses something.
pub fn run(config: &RunConfig, console: Console) -> Result<RunOutcome, RunError> {
    if config.nested == Nested::On {
        return Err(RunError::Unavailable {
            what: "a plain guest of KVM's is not offered VMX".into(),
            remedy: "use --nested off, or --processor soft".into(),
        });
    }
    let kvm = host::open(Path::new(host::DEVICE)).map_err(host_error)?;
    let pc = Pc::new(&kvm, config.memory, config.cpus).map_err(host_error)?;
    let source = BootSource {
        kernel: &config.kernel,
        initrd: config.initrd.as_ref(),
        modules: &config.modules,
        cmdline: &config.cmdline,
        processors: config.cpus,
    };
    let entry = boot::load(pc.vm.ram().memory(), &source)?;
    pc.set_entry(&entry).map_err(host_error)?;
    start(pc, console, config.timeout).map_err(host_error)
}

fn host_error(error: KvmError) -> RunError {
    RunError::Host(error.into())
}

/// Lets the machine run, whose first vCPU is ready to boot.
fn start(pc: Pc, console: Console, timeout: Option<Duration>) -> Result<RunOutcome, KvmError> {
    let Console { input, output, stop, .. } = console;
    let (sender, events) = channel::unbounded();
    let peripherals = Peripherals::new(Platform {
        memory_below_4g: pc.memory_below_4g(),
        memory_above_4g: pc.memory_above_4g(),
        date: date(),
        console: output,
    });
    let vm = pc.vm;
    let set_line =
        move |line, level| vm.fd().set_irq_line(line, level).map_err(KvmError::request("KVM_IRQ_LINE"));
    let board = Arc::new(Board::new(peripherals, Box::new(set_line), sender.clone()));
    let mut crew = Crew::start(pc.vcpus, &board, &sender)?;
    stop.on_request(move || {
        let _ = sender.send(Event::Stop);
    });
    let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let end = supervise(&board, &events, input, deadline, || stop.requested());
    let ran = crew.end();
    let mut counters = Counters::default();
    let mut last_exits = Vec::new();
    for of_vcpu in ran {
        counters.from_l1.include(&of_vcpu.counters.from_l1);
        last_exits.extend(of_vcpu.last_exits);
    }
    if let Err(error) = board.finish() {
        tracing::error!("the console cannot be written: {error}");
    }
    Ok(RunOutcome { end: end?, counters, cpuid_digest: String::new(), last_exits })
}

/// Waits for the end; meanwhile passes input on and looks after the devices.
fn supervise(
    board: &Board,
    events: &Receiver<Event>,
    mut input: Receiver<u8>,
    deadline: Option<Instant>,
    stopped: impl Fn() -> Option<StopReason>,
) -> Result<End, KvmError> {
    loop {
        if let Some(reason) = stopped() {
            return Ok(End::Stopped(reason));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Ok(End::Stopped(StopReason::Timeout));
        }
        let has_room = board.input_room() > 0;
        let patience = [left, board.due_in(), (!has_room).then_some(ROOM_AGAIN)].into_iter().flatten().min();
        let taken = if has_room { input.clone() } else { never() };
        let timer = patience.map_or_else(never, channel::after);
        select! {
            recv(events) -> event => match event {
                Ok(Event::Ended(end)) => return end,
                // A loop turn takes them into account.
                Ok(Event::Due | Event::Stop) | Err(_) => {}
            },
            recv(taken) -> byte => match byte {
                Ok(byte) => board.input(byte)?,
                // A line on which nothing more will come.
                Err(_) => input = never(),
            },
            recv(timer) -> _ => board.look_after()?,
        }
    }
}

/// Seconds since 1970, as the guest's clock begins.
fn date() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests;
