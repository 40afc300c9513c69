//! A vCPU's thread: from exit to entry, until somebody ends the machine.

use std::sync::atomic::{AtomicBool, Ordering};

use vmcs12::exit::Reason;

use super::board::Board;
use super::recent::{Recent, What};
use crate::config::End;
use crate::device::Request;
use crate::observe::counters::Counters;
use crate::processor::kvm::error::KvmError;
use crate::processor::kvm::vcpu::{Exit, Vcpu};

/// What a vCPU leaves behind.
pub(super) struct Ran {
    pub(super) counters: Counters,
    pub(super) last_exits: Vec<String>,
}

/// Runs the vCPU until the guest ends the machine, which is the result, or `ending` is set, which is None.
pub(super) fn run(
    id: u32,
    vcpu: &mut Vcpu,
    board: &Board,
    ending: &AtomicBool,
) -> (Result<Option<End>, KvmError>, Ran) {
    let (mut counters, mut recent) = (Counters::default(), Recent::new());
    let end = turns(vcpu, board, ending, &mut counters, &mut recent);
    let mut last_exits = recent.lines(id);
    last_exits.push(format!("vCPU {id}: RIP {:#x}", vcpu.rip()));
    (end, Ran { counters, last_exits })
}

fn turns(
    vcpu: &mut Vcpu,
    board: &Board,
    ending: &AtomicBool,
    counters: &mut Counters,
    recent: &mut Recent,
) -> Result<Option<End>, KvmError> {
    while !ending.load(Ordering::Relaxed) {
        match vcpu.run()? {
            Exit::Out { port, width, data } => {
                counters.from_l1.add(Reason::IoInstruction);
                recent.push(What::Out { port, width: width as u8, value: first(data) as u32 });
                if let Some(request) = board.write(port, width, data)? {
                    return Ok(Some(end(request)));
                }
            }
            Exit::In { port, width, data } => {
                counters.from_l1.add(Reason::IoInstruction);
                recent.push(What::In { port, width: width as u8 });
                board.read(port, width, data)?;
            }
            // Nothing of ours is there: reads are all ones, writes are dropped.
            Exit::MmioRead { address, data } => {
                counters.from_l1.add(Reason::EptViolation);
                recent.push(What::MmioRead { address, width: data.len() as u8 });
                data.fill(0xff);
            }
            Exit::MmioWrite { address, data } => {
                counters.from_l1.add(Reason::EptViolation);
                recent.push(What::MmioWrite { address, width: data.len() as u8, value: first(data) });
            }
            Exit::Shutdown => {
                counters.from_l1.add(Reason::TripleFault);
                return Ok(Some(End::TripleFault));
            }
            Exit::Interrupted => {}
            // Interrupt controllers in the kernel keep a vCPU's HLT there.
            Exit::Halt => {
                return Err(KvmError::Unexpected { exit: "HLT in user space".into(), rip: vcpu.rip() });
            }
        }
    }
    Ok(None)
}

/// The first value of an access, at most eight bytes of it.
fn first(data: &[u8]) -> u64 {
    data.iter().take(8).rev().fold(0, |value, &byte| value << 8 | u64::from(byte))
}

fn end(request: Request) -> End {
    match request {
        Request::PowerOff => End::PowerOff,
        Request::Reset => End::Reset,
        Request::DebugExit(value) => End::DebugExit(value),
    }
}
