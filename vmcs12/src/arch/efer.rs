//! IA32_EFER. SDM Vol. 3, "Extended Feature Enable Register".

/// SYSCALL enable.
pub const SCE: u64 = 1 << 0;
/// IA-32e mode enable.
pub const LME: u64 = 1 << 8;
/// IA-32e mode active.
pub const LMA: u64 = 1 << 10;
/// Execute-disable enable.
pub const NXE: u64 = 1 << 11;
/// All bits that exist.
pub const ALL: u64 = SCE | LME | LMA | NXE;
