//! The window: the same linear addresses, with the same bytes, in the host process and in the guest. It is far from
//! everything else that is mapped below 4 GiB, so that a wild 32-bit offset meets nothing.

/// Where the window begins.
pub const BASE: u64 = 0x4000_0000;
/// Its length: one page table.
pub const LEN: u64 = 0x20_0000;
/// Executable pages, full of INT3.
pub const CODE: u64 = BASE;
/// Length of the code.
pub const CODE_LEN: usize = 0x2000;
/// Readable and writable pages; the pages around them are not present.
pub const DATA: u64 = BASE + 0x10_0000;
/// Length of the data.
pub const DATA_LEN: usize = 0x2000;
/// The boundary between the two data pages.
pub const MIDDLE: u64 = DATA + 0x1000;
/// A page that may only be read; the pages around it are not present.
pub const READ_ONLY: u64 = BASE + 0x18_0000;
/// The task-state segment, on a supervisor's page: without an I/O bitmap, so ports are refused.
pub const TASK_STATE: u64 = BASE + 0x1c_0000;
/// What the read-only page is full of.
pub const READ_ONLY_FILL: u8 = 0x5c;
/// GS.base at the start of each case: small, so that 32-bit addresses reach the window from there.
pub const GS_BASE: u64 = 0x1000_0000;
/// INT3, which ends each case.
pub const INT3: u8 = 0xcc;
