//! L1s that write what no hypervisor would. Whatever a VMCS holds, the engine merges it into one that the processor
//! takes, or refuses it as the manual says; the run goes on or ends in a way that is L1's own.
//! `HOSTILE_CASES` sets how many are tried, `HOSTILE_FIRST` which is the first.

use crate::asm;
use crate::code::*;
use crate::l1;
use crate::place::*;
use iced_x86::code_asm::*;
use testudo::config::End;
use vmcs12::control::*;
use vmcs12::field::table::*;

const CASES: u64 = 300;
/// Entries after which a case has shown what it can.
const ENTRIES: usize = 4;
/// Fields changed at most before each.
const MOST_CHANGES: u64 = 4;

/// Xorshift: the same cases in each run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
    fn below(&mut self, end: u64) -> u64 {
        (self.next() >> 32) % end
    }
    /// Bits to flip: mostly one.
    fn bits(&mut self) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => self.next() & 0xffff_ffff,
            2 => 1 << self.below(64) | 1 << self.below(32),
            _ => 1 << self.below(32),
        }
    }
}

/// Flips bits of a field, or of what a field points to.
fn spoil(l1: &mut Code, random: &mut Random) {
    let bits = random.bits();
    if random.below(8) == 0 {
        let tables = [EPT_PML4, EPT_PML4 + 0x1000, EPT_PML4 + 0x2000, EPT_PT, PML4 + 0x2000, MSR_LIST];
        let at = tables[random.below(tables.len() as u64) as usize] + 8 * random.below(8);
        asm!(l1; mov(rdx, bits); xor(qword_ptr(at as u32), rdx));
        return;
    }
    let encoding = FIELDS[random.below(FIELDS.len() as u64) as usize].encoding;
    asm!(l1; mov(ecx, encoding); vmread(rax, rcx); mov(rdx, bits); xor(rax, rdx); vmwrite(rcx, rax));
}

fn case(seed: u64) -> End {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    l1::end_of_guest(
        |l1| {
            l1.set(ACTIVATE_VMX_PREEMPTION_TIMER);
            for entry in 0..ENTRIES {
                l1.write(VMX_PREEMPTION_TIMER_VALUE, 50);
                for _ in 0..=random.below(MOST_CHANGES) {
                    spoil(l1, &mut random);
                }
                l1.try_enter(if entry == 0 { Entry::Launch } else { Entry::Resume });
            }
        },
        |l2| {
            asm!(l2; sti(); cpuid(); mov(rax, cr0); mov(cr0, rax); mov(rax, cr4); mov(cr4, rax));
            asm!(l2; mov(rax, cr3); mov(cr3, rax); in_(al, 0x80); rdtsc(); pause(); mov(rax, cr8); int(0x50));
        },
    )
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn whatever_is_in_a_vmcs_the_processor_takes_what_the_engine_makes_of_it() {
    let first = number("HOSTILE_FIRST", 1);
    for seed in first..first + number("HOSTILE_CASES", CASES) {
        match case(seed) {
            End::DebugExit(_)
            | End::TripleFault
            | End::Halted
            | End::VmxAbort(_)
            | End::Reset
            | End::PowerOff => {}
            end @ (End::Broken(_) | End::Stopped(_)) => panic!("case {seed}: {end:?}"),
        }
    }
}
