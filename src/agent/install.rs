//! The init container's part: brings this executable into an image that has none.

use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::Context as _;
use tempfile::NamedTempFile;

/// Copies the running executable to `directory`/xregion, mode 0555. An older copy is replaced at once, also while it runs.
pub fn install(directory: &Path) -> anyhow::Result<()> {
    let context = || format!("can't install into {}", directory.display());
    let mut source = File::open("/proc/self/exe").context("can't read the running executable")?;
    let mut copy = NamedTempFile::new_in(directory).with_context(context)?;
    std::io::copy(&mut source, &mut copy).with_context(context)?;
    copy.as_file().set_permissions(Permissions::from_mode(0o555)).with_context(context)?;
    copy.persist(directory.join("xregion")).with_context(context)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn installs_itself_also_over_an_older_copy() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("xregion");
        std::fs::write(&target, "old").unwrap();
        install(directory.path()).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), std::fs::read("/proc/self/exe").unwrap());
        assert_eq!(target.metadata().unwrap().permissions().mode() & 0o7777, 0o555);
        assert_eq!(directory.path().read_dir().unwrap().count(), 1);
        let error = install(&directory.path().join("gone")).unwrap_err();
        assert!(format!("{error}").contains("gone"));
    }
}
