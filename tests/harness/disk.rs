//! File systems of a test's own: a small one in memory to be filled, a real one in a file to be given up by the kernel.
//! Only root may mount them: others are told that the test was left out.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted tmpfs, until it is dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of so many MiB on a new directory; none where that is not allowed.
    pub fn mount(at: &Path, mib: u32) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(at)
            .output()
            .is_ok_and(|output| output.status.success());
        mounted.then(|| Self(at.to_owned()))
    }

    /// Fills it to the last byte but those.
    pub fn fill(&self, but_bytes: usize) {
        let mut file = fs::File::create(self.filler()).unwrap();
        let block = vec![7; 64 << 10];
        while file.write_all(&block).is_ok() {}
        // The last block went in part.
        while file.write_all(&block[..512]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(but_bytes as u64))
            .unwrap();
    }

    /// Takes that back.
    pub fn clear(&self) {
        fs::remove_file(self.filler()).unwrap();
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: the last process that uses it may still be on its way out.
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        drop(unmounted);
    }
}

/// An ext4 file system in a file, mounted until it is dropped.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    at: PathBuf,
}

impl LoopDisk {
    /// Makes one of so many MiB and mounts it on a new directory; none where that is not allowed.
    pub fn mount(image: &Path, at: &Path, mib: u64) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        fs::File::create(image).unwrap().set_len(mib << 20).unwrap();
        let disk = Self {
            image: image.to_owned(),
            at: at.to_owned(),
        };
        (run("mkfs.ext4", &["-q", "-F"], &[image]) && disk.mount_again()).then_some(disk)
    }

    /// The kernel finds it damaged: it takes no writes any more, as long as it is mounted.
    pub fn give_up(&self) {
        assert!(run("mount", &["-o", "remount,abort"], &[&self.at]));
    }

    /// What an administrator does then; nobody may use it.
    pub fn repair(&self) {
        assert!(run("umount", &[], &[&self.at]), "it is still in use");
        run("e2fsck", &["-p"], &[&self.image]);
        assert!(self.mount_again());
    }

    fn mount_again(&self) -> bool {
        run("mount", &["-o", "loop"], &[&self.image, &self.at])
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        run("umount", &["-l"], &[&self.at]);
    }
}

fn run(program: &str, flags: &[&str], paths: &[&Path]) -> bool {
    let done = Command::new(program).args(flags).args(paths).output();
    done.is_ok_and(|output| output.status.success())
}
