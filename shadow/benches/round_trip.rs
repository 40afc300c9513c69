//! What the engine itself costs: a CPUID of L2 reflected to L1 and L1's VMRESUME, and a page mapped in ept02.
//! The processor's and L1's part is not in it.

#[path = "../tests/world/mod.rs"]
mod world;

use shadow::{Decision, L2Exit, Outcome, Pending, Taken};
use std::time::Instant;
use vmcs12::addr::{Pa, Physical};
use vmcs12::control::*;
use vmcs12::exit::Reason;
use vmcs12::field::table::*;
use world::*;

const ROUNDS: u32 = 200_000;

fn measure(what: &str, mut round: impl FnMut(u64)) {
    let best = (0..5).map(|_| {
        let start = Instant::now();
        (0..u64::from(ROUNDS)).for_each(&mut round);
        start.elapsed() / ROUNDS
    });
    println!("{what}: {:?}", best.min().unwrap_or_default());
}

fn main() {
    let mut world = World::in_l2_with(|world| {
        world.enable_ept12();
        world.memory.write(Pa(MSR_BITMAP), &[0xff; 4096]);
        let vmcs12 = world.vmcs12();
        vmcs12.set_control(USE_MSR_BITMAPS, true);
        vmcs12.set(ADDRESS_OF_MSR_BITMAPS, Pa(MSR_BITMAP));
        vmcs12.set_control(USE_TPR_SHADOW, true);
        vmcs12.set(VIRTUAL_APIC_ADDRESS, Pa(0x9000));
        vmcs12.set_control(UNRESTRICTED_GUEST, true);
    });
    let mut rip = L2_RIP;
    measure("CPUID reflected, VMRESUME", |_| {
        assert_eq!(world.exit(Reason::Cpuid, |_| {}), L2Exit::Reflected);
        rip = (rip + 2) & 0xffff_ffff;
        world.vmcs12().set(GUEST_RIP, rip);
        assert_eq!(world.instruction(Reason::Vmresume), Outcome::Entered);
        assert_eq!(world.before_entry(Pending::default()), Decision::Enter(Taken::Nothing));
        world.engine.invalidations.drain(|_| {});
    });
    measure("page mapped in ept02", |n| {
        let exit = world.exit(Reason::EptViolation, |vmcs02| {
            vmcs02.set(GUEST_PHYSICAL_ADDRESS, (n << 12) % RAM);
            vmcs02.set(EXIT_QUALIFICATION, 1);
        });
        assert_eq!(exit, L2Exit::Resumed);
    });
}
