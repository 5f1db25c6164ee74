/** Recipes: the shell steps of the image build refuse what they must refuse. */
import assert from "node:assert/strict";
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import process from "node:process";
import test, { type TestContext } from "node:test";
import { fileURLToPath } from "node:url";
import { run } from "../../../src/host/process.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";

const IMAGES = fileURLToPath(new URL("../../../images/", import.meta.url));

async function checkConfig(t: TestContext, wanted: string, config: string) {
  const directory = temporaryDirectory(t);
  writeFileSync(path.join(directory, "wanted"), wanted);
  writeFileSync(path.join(directory, "config"), config);
  return await run(["sh", path.join(IMAGES, "kernel/check_config.sh"), path.join(directory, "wanted"), path.join(directory, "config")]);
}

test("a kernel configuration with every wanted line passes, whatever else it has", async (t) => {
  const config = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="x y"\nCONFIG_D=y\n';
  const { code, stderr } = await checkConfig(
    t,
    '# why\nCONFIG_A=y\n\n# CONFIG_B is not set\nCONFIG_C="x y"\n# CONFIG_GONE is not set\n',
    config,
  );
  assert.deepEqual([code, stderr], [0, ""]);
});

test("a dropped, a changed and a flipped option each fail the build and are named, all at once", async (t) => {
  const { code, stderr } = await checkConfig(
    t,
    "CONFIG_A=y\nCONFIG_N=32\n# CONFIG_B is not set\nCONFIG_AB=y\n",
    "CONFIG_AB=y\nCONFIG_N=28\nCONFIG_B=y\n",
  );
  assert.equal(code, 1);
  assert.deepEqual(stderr.trim().split("\n"), [
    "olddefconfig dropped or changed: CONFIG_A=y",
    "olddefconfig dropped or changed: CONFIG_N=32",
    "olddefconfig switched on: CONFIG_B=y",
  ]);
});

test("an empty configuration, or a line that is none, fails", async (t) => {
  assert.equal((await checkConfig(t, "CONFIG_A=y\n", "")).code, 2);
  assert.equal((await checkConfig(t, "CONFIG_A y\n", "CONFIG_A=y\n")).code, 1);
});

/** A tree that looks like a Debian root to the recipe. */
function debianTree(t: TestContext): string {
  const tree = path.join(temporaryDirectory(t), "tree");
  for (
    const directory of ["usr/bin", "usr/sbin", "usr/lib/x86_64-linux-gnu/gconv", "usr/share/doc/bash", "etc", "var/lib/dpkg", "home", "tmp"]
  ) {
    mkdirSync(path.join(tree, directory), { recursive: true });
  }
  for (
    const file of ["usr/bin/bash", "usr/bin/su", "usr/bin/sudoedit", "usr/sbin/fdisk", "usr/sbin/ldconfig", "usr/share/doc/bash/README"]
  ) {
    writeFileSync(path.join(tree, file), "");
    chmodSync(path.join(tree, file), 0o755);
  }
  chmodSync(path.join(tree, "usr/bin/sudoedit"), 0o6755);
  writeFileSync(path.join(tree, "usr/bin/mailer"), "#!/usr/bin/perl\n");
  writeFileSync(path.join(tree, "etc/passwd"), "root:x:0:0:root:/root:/bin/bash\nuser:x:999:999::/nowhere:/bin/false\n");
  writeFileSync(path.join(tree, "etc/group"), "root:x:0:\n");
  symlinkSync("/usr/share/gone", path.join(tree, "etc/dangling"));
  return tree;
}

test("a pruned root has our user, its mount points, and neither set-user-id bits nor package management", async (t) => {
  const tree = debianTree(t);
  for (let round = 0; round < 2; round++) {
    const { code, stderr } = await run(["sh", path.join(IMAGES, "rootfs/prune.sh"), tree, "raw"]);
    assert.deepEqual([code, stderr], [0, ""], "a second time must not harm");
  }
  const has = (name: string) => existsSync(path.join(tree, name));
  assert.deepEqual(["usr/bin/bash", "usr/sbin/ldconfig", "home/user", "proc", "sys", "dev", "run", "tmp"].filter((name) => !has(name)), []);
  assert.deepEqual(["var/lib/dpkg", "usr/share/doc", "usr/bin/su", "usr/bin/mailer", "usr/sbin/fdisk"].filter(has), []);
  assert.equal(statSync(path.join(tree, "usr/bin/sudoedit")).mode & 0o6000, 0);
  const users = readFileSync(path.join(tree, "etc/passwd"), "utf8").split("\n").filter((line) => line.startsWith("user:"));
  assert.deepEqual(users, ["user:x:1000:1000::/home/user:/bin/bash"]);
  assert.equal(readlinkSync(path.join(tree, "etc/resolv.conf")), "/run/resolv.conf");
  assert.throws(() => lstatSync(path.join(tree, "etc/dangling")));
});

test("a pruned root keeps the compiled time zones, with every older name as a link, and nothing beside them", async (t) => {
  const tree = debianTree(t), zones = path.join(tree, "usr/share/zoneinfo");
  for (const directory of ["Europe", "America/Argentina", "right/Europe", "posix"]) {
    mkdirSync(path.join(zones, directory), { recursive: true });
  }
  for (
    const zone of [
      "Europe/Berlin",
      "America/New_York",
      "America/Argentina/Catamarca",
      "right/Europe/Berlin",
      "UTC",
      "zone.tab",
      "leapseconds",
    ]
  ) {
    writeFileSync(path.join(zones, zone), zone);
  }
  const links = "L America/New_York US/Eastern\nL US/Eastern EST5EDT\nL UTC Zulu\n" +
    "L America/Argentina/Catamarca America/Argentina/ComodRivadavia\nL America/New_York Europe/Berlin\n";
  writeFileSync(path.join(zones, "tzdata.zi"), `# version 2026a\nZ UTC 0 - UTC\n${links}`);
  for (let round = 0; round < 2; round++) {
    const { code, stderr } = await run(["sh", path.join(IMAGES, "rootfs/prune.sh"), tree, "raw"]);
    assert.deepEqual([code, stderr], [0, ""]);
  }
  const read = (name: string) => readFileSync(path.join(zones, name), "utf8");
  assert.deepEqual(["US/Eastern", "EST5EDT", "Zulu", "America/Argentina/ComodRivadavia", "Europe/Berlin"].map(read), [
    "America/New_York",
    "America/New_York",
    "UTC",
    "America/Argentina/Catamarca",
    "Europe/Berlin",
  ]);
  assert.equal(readlinkSync(path.join(zones, "US/Eastern")), "../America/New_York");
  assert.deepEqual(["right", "posix", "zone.tab", "leapseconds", "tzdata.zi"].filter((name) => existsSync(path.join(zones, name))), []);
});

test("the recipe refuses a directory that is no Debian root, and touches nothing in it", async (t) => {
  const directory = temporaryDirectory(t);
  mkdirSync(path.join(directory, "tmp"));
  writeFileSync(path.join(directory, "tmp/file"), "");
  const { code, stderr } = await run(["sh", path.join(IMAGES, "rootfs/prune.sh"), directory, "raw"]);
  assert.equal(code, 1);
  assert.match(stderr, /no Debian tree/);
  assert.ok(existsSync(path.join(directory, "tmp/file")));
});

test("a root in which a program misses a library fails the check", { skip: process.platform !== "linux" }, async (t) => {
  const tree = path.join(temporaryDirectory(t), "tree");
  mkdirSync(path.join(tree, "usr/bin"), { recursive: true });
  mkdirSync(path.join(tree, "usr/lib"), { recursive: true });
  mkdirSync(path.join(tree, "usr/sbin"), { recursive: true });
  const check = () => run(["sh", path.join(IMAGES, "rootfs/check.sh"), tree]);
  assert.equal((await check()).code, 0);
  writeFileSync(path.join(tree, "usr/bin/program"), readFileSync(process.execPath).subarray(0), { mode: 0o755 });
  const { code, stderr } = await check();
  assert.equal(code, 1);
  assert.match(stderr, /usr\/bin\/program needs libc\.so\.6/);
});

test("a compiler keeps what it needs to link, and the check misses it when it is gone", async (t) => {
  const tree = debianTree(t), place = "usr/libexec/gcc/x86_64-linux-gnu/16";
  mkdirSync(path.join(tree, place), { recursive: true });
  for (const name of ["cc1", "collect2", "liblto_plugin.so", "lto1", "lto-wrapper"]) writeFileSync(path.join(tree, place, name), "");
  assert.equal((await run(["sh", path.join(IMAGES, "rootfs/prune.sh"), tree, "raw"])).code, 0);
  assert.deepEqual(readdirSync(path.join(tree, place)).sort(), ["cc1", "collect2", "liblto_plugin.so"]);
  const check = () => run(["sh", path.join(IMAGES, "rootfs/check.sh"), tree]);
  assert.equal((await check()).code, 0);
  rmSync(path.join(tree, place, "liblto_plugin.so"));
  const { code, stderr } = await check();
  assert.deepEqual([code, /cc1 cannot link without liblto_plugin\.so/.test(stderr)], [1, true], stderr);
});

noLeftovers();
