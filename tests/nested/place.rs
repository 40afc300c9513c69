//! Where L1 keeps things. Linear addresses are physical, of L1 and, through EPT, of L2.

pub const IMAGE: u64 = 0x10_0000;
pub const BOOT: u64 = IMAGE;
pub const GDT: u64 = 0x10_1000;
pub const TSS: u64 = 0x10_1800;
pub const IDT_L1: u64 = 0x10_2000;
pub const IDT_L2: u64 = 0x10_3000;
/// Page tables of L1 and of L2: 1 GiB in 2-MiB pages, but for [`NOT_MAPPED`].
pub const PML4: u64 = 0x10_4000;
/// EPT: the machine's RAM in 2-MiB pages, but for [`PAGES`].
pub const EPT_PML4: u64 = 0x10_8000;
pub const EPT_PT: u64 = 0x10_b000;
pub const RUNTIME_L1: u64 = 0x10_c000;
pub const RUNTIME_L2: u64 = 0x10_e000;
pub const CODE_L1: u64 = 0x11_0000;
pub const CODE_L2: u64 = 0x12_0000;
pub const IMAGE_END: u64 = 0x13_0000;

pub const VMXON_REGION: u64 = 0x20_0000;
pub const VMCS: u64 = 0x20_1000;
pub const OTHER_VMCS: u64 = 0x20_2000;
pub const MSR_BITMAP: u64 = 0x20_3000;
pub const IO_BITMAP_A: u64 = 0x20_4000;
pub const IO_BITMAP_B: u64 = 0x20_5000;
pub const MSR_LIST: u64 = 0x20_6000;
pub const VIRTUAL_APIC: u64 = 0x20_7000;
/// What the payloads report, 8 bytes an item.
pub const LOG: u64 = 0x20_8000;
/// Where L1's handler of exceptions goes on; 0 if none is expected.
pub const CATCH: u64 = 0x20_9000;
pub const OPERAND: u64 = 0x20_9010;
pub const SCRATCH: u64 = 0x20_a000;
pub const STACK_L1: u64 = 0x21_0000;
pub const STACK_L1_EXCEPTION: u64 = 0x22_0000;
pub const STACK_USER: u64 = 0x23_0000;
pub const STACK_L2: u64 = 0x24_0000;

/// 2 MiB that EPT maps in 4-KiB pages.
pub const PAGES: u64 = 0x40_0000;
/// 2 MiB that the page tables do not map.
pub const NOT_MAPPED: u64 = 0x60_0000;
pub const RAM: u64 = 0x100_0000;

pub const CODE_SELECTOR: u16 = 0x08;
pub const DATA_SELECTOR: u16 = 0x10;
pub const USER_CODE_SELECTOR: u16 = 0x1b;
pub const USER_DATA_SELECTOR: u16 = 0x23;
pub const TASK_SELECTOR: u16 = 0x28;
