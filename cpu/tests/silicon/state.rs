//! What goes in and what comes out.

use vmcs12::arch::rflags;

/// General registers in the order of the architecture, and RFLAGS.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registers {
    pub gpr: [u64; 16],
    pub rflags: u64,
}

/// How a run ended.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    pub registers: Registers,
    pub rip: u64,
    pub vector: u8,
    pub error_code: u32,
    /// CR2 of a page fault.
    pub address: u64,
    pub fs_base: u64,
    pub gs_base: u64,
}

impl Outcome {
    pub const NONE: Self = Self {
        registers: Registers { gpr: [0; 16], rflags: 0 },
        rip: 0,
        vector: 0,
        error_code: 0,
        address: 0,
        fs_base: 0,
        gs_base: 0,
    };
}

const NAMES: [&str; 16] = [
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15",
];

/// The flags in words.
pub fn flags(value: u64) -> String {
    let names = [
        (rflags::CF, "CF"),
        (rflags::PF, "PF"),
        (rflags::AF, "AF"),
        (rflags::ZF, "ZF"),
        (rflags::SF, "SF"),
        (rflags::OF, "OF"),
        (rflags::DF, "DF"),
    ];
    let set: Vec<_> = names.iter().filter(|(mask, _)| value & mask != 0).map(|&(_, name)| name).collect();
    format!("{value:#x}({})", set.join(" "))
}

/// What differs, as text; empty if nothing does.
pub fn differences(before: &Registers, host: &Outcome, ours: &Outcome) -> String {
    let mut text = String::new();
    let mut pair = |name: &str, host: u64, ours: u64| {
        if host != ours {
            text += &format!(" {name}: host {host:#x}, ours {ours:#x};");
        }
    };
    pair("vector", host.vector.into(), ours.vector.into());
    pair("error code", host.error_code.into(), ours.error_code.into());
    pair("CR2", host.address, ours.address);
    pair("rip", host.rip, ours.rip);
    pair("FS.base", host.fs_base, ours.fs_base);
    pair("GS.base", host.gs_base, ours.gs_base);
    for (i, name) in NAMES.iter().enumerate() {
        pair(&format!("{name} (was {:#x})", before.gpr[i]), host.registers.gpr[i], ours.registers.gpr[i]);
    }
    if host.registers.rflags != ours.registers.rflags {
        let (was, host, ours) = (before.rflags, host.registers.rflags, ours.registers.rflags);
        text += &format!(" rflags (was {}): host {}, ours {};", flags(was), flags(host), flags(ours));
    }
    text
}
