//! The MSRs of L1 that cause an exit: two tables, for what the vCPU keeps itself and for what is in a VMCS or in
//! [`CpuState`]. What has no row does not exist: #GP(0). SDM Vol. 4, "Model-Specific Registers".

pub mod guest;
pub mod own;

pub use guest::Access;
pub use own::{Own, Registers};

use crate::vcpu::model::Model;
use vmcs12::arch::msr::*;

/// One row: a range of MSRs, and what RDMSR and WRMSR do. `None` is #GP(0).
struct Row<R, W> {
    first: u32,
    last: u32,
    read: R,
    write: W,
}

const fn row<R: Copy, W: Copy>(first: u32, last: u32, read: R, write: W) -> Row<R, W> {
    Row { first, last, read, write }
}

const fn one<R: Copy, W: Copy>(index: u32, read: R, write: W) -> Row<R, W> {
    row(index, index, read, write)
}

/// The row of an MSR in a table of ascending order.
fn find<R, W>(rows: &[Row<R, W>], index: u32) -> Option<&Row<R, W>> {
    rows.get(rows.partition_point(|row| row.last < index)).filter(|row| row.first <= index)
}

const fn is_ascending<R, W>(rows: &[Row<R, W>]) -> bool {
    let mut i = 0;
    while i < rows.len() {
        if rows[i].first > rows[i].last || i > 0 && rows[i - 1].last >= rows[i].first {
            return false;
        }
        i += 1;
    }
    true
}

/// The value, if it sets no other bits.
fn within(value: u64, bits: u64) -> Option<u64> {
    (value & !bits == 0).then_some(value)
}

/// Which accesses need no exit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Passed {
    Reads,
    Writes,
    Both,
}

/// An MSR, what is passed through of it, and on which models it exists.
type PassedRow = (u32, Passed, fn(&Model) -> bool);

/// MSRs that the processor keeps itself, and what of them the profile must have.
#[rustfmt::skip]
const PASSED_THROUGH: &[PassedRow] = &[
    (IA32_SPEC_CTRL,      Passed::Reads,  |model| model.spec_ctrl.is_some()),   // a write may set bits that are not offered
    (IA32_PRED_CMD,       Passed::Writes, |model| model.pred_cmd),
    (IA32_FLUSH_CMD,      Passed::Writes, |model| model.flush_cmd),
    (IA32_SYSENTER_CS,    Passed::Both,   |_| true),
    (IA32_SYSENTER_ESP,   Passed::Both,   |_| true),
    (IA32_SYSENTER_EIP,   Passed::Both,   |_| true),
    (IA32_DEBUGCTL,       Passed::Reads,  |_| true),
    (IA32_PAT,            Passed::Reads,  |_| true),
    (IA32_EFER,           Passed::Reads,  |_| true),
    (IA32_STAR,           Passed::Both,   |_| true),
    (IA32_LSTAR,          Passed::Both,   |_| true),
    (IA32_CSTAR,          Passed::Both,   |_| true),
    (IA32_FMASK,          Passed::Both,   |_| true),
    (IA32_FS_BASE,        Passed::Both,   |_| true),
    (IA32_GS_BASE,        Passed::Both,   |_| true),
    (IA32_KERNEL_GS_BASE, Passed::Both,   |_| true),
    (IA32_TSC_AUX,        Passed::Both,   |model| model.tsc_aux),
];

/// Bytes of the MSR-bitmap page. SDM Vol. 3, "MSR-Bitmap Address".
const BITMAP_BYTES: usize = 4096;
const WRITES_AT: usize = 2048;
const HIGH_MSRS_AT: usize = 1024;
const HIGH_MSRS: u32 = 0xc000_0000;

/// The MSR bitmap: every access exits but those that the processor handles itself.
pub fn bitmap(model: &Model) -> [u8; BITMAP_BYTES] {
    let mut bitmap = [u8::MAX; BITMAP_BYTES];
    for (index, passed, _) in PASSED_THROUGH.iter().filter(|(_, _, exists)| exists(model)) {
        let half = if *index >= HIGH_MSRS { HIGH_MSRS_AT } else { 0 };
        let bit = (index & 0x1fff) as usize;
        let accesses: &[usize] = match passed {
            Passed::Reads => &[0],
            Passed::Writes => &[WRITES_AT],
            Passed::Both => &[0, WRITES_AT],
        };
        for at in accesses {
            bitmap[half + at + bit / 8] &= !(1 << (bit % 8));
        }
    }
    bitmap
}

#[cfg(test)]
mod tests;
