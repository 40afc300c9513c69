//! The interpreter: one handler per instruction form, each ending in a call of the next in tail position.
//!
//! A handler reads, computes, commits; where something may fault, nothing has changed yet. In release builds the
//! call of the next handler is a sibling call, so the stack does not grow; builds with debug assertions return to
//! the loop in `run.rs` instead.

pub(crate) mod arith;
pub(crate) mod bit;
pub(crate) mod branch;
pub(crate) mod moves;
pub(crate) mod multiply;
pub(crate) mod operand;
pub(crate) mod shift;
pub(crate) mod stack;
pub(crate) mod string;
pub(crate) mod system;
pub(crate) mod table;
pub(crate) mod vector;

use crate::block::Op;
use crate::state::{BLOCK_RIP, Cpu, Stop};
use vmcs12::arch::event::Exception;

/// Goes on with the next operation of the block.
macro_rules! next {
    ($cpu:ident, $op:ident) => {{
        // SAFETY: every block ends in an operation that does not fall through, so one follows.
        unsafe { $crate::interpret::go!($cpu, $op.add(1)) }
    }};
}

/// Goes on with the next operation of the block by way of the loop in `run.rs`: for handlers whose locals have their
/// address taken, which would keep the call from being a sibling call.
macro_rules! onward {
    ($op:ident) => {
        return $op.wrapping_add(1)
    };
}

/// Goes on with the operation `$target`.
macro_rules! go {
    ($cpu:ident, $target:expr) => {{
        let target: *const $crate::block::Op = $target;
        if cfg!(debug_assertions) {
            return target;
        }
        return ((*target).run)($cpu, target);
    }};
}

/// The value, or the handler ends: `stop` holds the fault of this instruction.
macro_rules! attempt {
    ($cpu:ident, $op:ident, $value:expr) => {
        match $value {
            Some(value) => value,
            None => return $cpu.stop_at($op),
        }
    };
}

pub(crate) use {attempt, go, next, onward};

impl Cpu {
    /// RIP of an operation's instruction.
    #[inline(always)]
    pub(crate) fn rip_of(&self, op: &Op) -> u64 {
        self.gpr[BLOCK_RIP].wrapping_add(u64::from(op.delta)) & self.ip_mask
    }

    /// RIP of the instruction after an operation's.
    #[inline(always)]
    pub(crate) fn next_rip(&self, op: &Op) -> u64 {
        self.gpr[BLOCK_RIP].wrapping_add(u64::from(op.delta) + u64::from(op.len)) & self.ip_mask
    }

    /// Leaves the block before this instruction: RIP and the count are those before it.
    #[cold]
    #[inline(never)]
    pub(crate) fn stop_at(&mut self, op: *const Op) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        let op = unsafe { &*op };
        self.rip = self.rip_of(op);
        self.retired += u64::from(op.index);
        std::ptr::null()
    }

    /// Leaves the block after this instruction, which has retired.
    #[inline(never)]
    pub(crate) fn leave_after(&mut self, op: *const Op) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        let op = unsafe { &*op };
        self.rip = self.next_rip(op);
        self.retired += u64::from(op.index) + 1;
        std::ptr::null()
    }

    /// Leaves the block after this instruction, which has retired and has set RIP itself to `rip`.
    #[inline(never)]
    pub(crate) fn leave_to(&mut self, op: *const Op, rip: u64) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        self.retired += u64::from(unsafe { (*op).index }) + 1;
        self.rip = rip;
        std::ptr::null()
    }

    /// Ends the instruction in an exception.
    #[cold]
    #[inline(never)]
    pub(crate) fn raise(&mut self, op: *const Op, exception: Exception) -> *const Op {
        self.stop = Stop::Fault(exception.into());
        self.stop_at(op)
    }
}

/// The block was changed by a store: find what stands at this instruction now. Jump caches and links may still
/// lead here, so they are not asked.
pub(crate) unsafe fn run_dead(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.stop_at(op);
    if cpu.retired >= cpu.soft_limit {
        return std::ptr::null();
    }
    let target = cpu.find(cpu.rip);
    if target.is_null() {
        return target;
    }
    // SAFETY: `target` is the start of a live block.
    unsafe { go!(cpu, target) }
}

/// The end of a block that no jump ends. It is no instruction: `index` counts those before it.
pub(crate) unsafe fn end_of_block(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = cpu.rip_of(this);
    cpu.retired += u64::from(this.index);
    if cpu.retired >= cpu.soft_limit {
        cpu.rip = rip;
        return std::ptr::null();
    }
    let target = cpu.target(rip);
    if target.is_null() {
        return target;
    }
    // SAFETY: `target` is the start of a live block.
    unsafe { go!(cpu, target) }
}

/// An instruction that does not exist, or not on this model.
pub(crate) unsafe fn undefined(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.raise(op, Exception::UD)
}

/// An instruction longer than 15 bytes.
pub(crate) unsafe fn too_long(cpu: &mut Cpu, op: *const Op) -> *const Op {
    cpu.raise(op, Exception::gp(0))
}

/// An instruction that does nothing.
pub(crate) unsafe fn nop(cpu: &mut Cpu, op: *const Op) -> *const Op {
    next!(cpu, op)
}
