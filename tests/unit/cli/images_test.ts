/** `sbx images` and `sbx prefetch`: what they ask of the images, and what they print. */
import assert from "node:assert/strict";
import process from "node:process";
import { test } from "node:test";
import { AssetError } from "../../../src/base/errors.ts";
import type { BuildRequest, CliImages, CliScheduler } from "../../../src/cli/context.ts";
import type { Assets } from "../../../src/images/assets.ts";
import { FakeOutput, sbx, type World } from "./fake_context.ts";

const file = (name: string, size: number, versions: Record<string, string> = {}) => ({
  name,
  size,
  versions,
  path: `/images/${name}`,
  sha256: name.slice(0, 1).repeat(64),
  kind: "kernel" as const,
});
const files = [file("a-kernel", 13_581_224, { linux: "6.12" }), file("b-rom", 65_536)];

/** Images that are there, and what was asked of them. */
function installed(replaced: Partial<CliImages> = {}) {
  const asked: string[] = [];
  const built: BuildRequest[] = [];
  const images = (arch: string | undefined): CliImages => ({
    directory: "/images",
    open: () =>
      Promise.resolve({ directory: "/images", version: "1.2.3", arch: "x86_64", files, languages: ["python", "raw"] } as unknown as Assets),
    verify: ({ onProgress }) => {
      asked.push(`verify ${arch}`);
      onProgress({ task: "verify", message: "a-kernel" });
      return Promise.resolve(files);
    },
    fetch: ({ onProgress }) => {
      asked.push(`fetch ${arch}`);
      onProgress({ task: "download", message: "a-kernel" });
      return Promise.resolve();
    },
    build: (request) => {
      built.push(request);
      request.onWarning?.("old\x1b mirror");
      return Promise.resolve({ imagesDir: "/images", stages: [], seconds: 12.3 });
    },
    remove: () => Promise.resolve(13_646_760),
    ...replaced,
  });
  const prepared: string[] = [];
  const open = (): Promise<CliScheduler> =>
    Promise.resolve({
      run: () => Promise.reject(new Error("nothing is to run")),
      session: () => Promise.reject(new Error("nothing is to run")),
      checkpoints: () => Promise.resolve([]),
      pinPackages: () => Promise.reject(new Error("nothing is to be pinned")),
      prepare: (language) => Promise.resolve(void prepared.push(language)),
      [Symbol.asyncDispose]: () => Promise.resolve(void prepared.push("closed")),
    });
  const world: World = { images, open };
  return { world, asked, built, prepared };
}

test("images list shows every file, as a table and as JSON", async () => {
  const { world } = installed();
  const { stdout, stderr, code } = await sbx(["images", "list"], world);
  assert.equal(
    stdout,
    "sbx images 1.2.3 for x86_64 in /images\n" +
      "a-kernel  13.6 MB  aaaaaaaaaaaa  linux 6.12\n" +
      "b-rom      0.1 MB  bbbbbbbbbbbb\n",
  );
  assert.deepEqual([stderr, code], ["", 0]);
  const json = JSON.parse((await sbx(["images", "list", "--json"], world)).stdout);
  assert.deepEqual([json.directory, json.version, json.arch], ["/images", "1.2.3", "x86_64"]);
  assert.deepEqual(json.files[0], {
    name: "a-kernel",
    kind: "kernel",
    size: 13_581_224,
    sha256: "a".repeat(64),
    versions: { linux: "6.12" },
  });
});

test("images verify lists what is right, with progress on standard error", async () => {
  const { world, asked } = installed();
  const { stdout, stderr } = await sbx(["images", "verify"], world);
  assert.equal(stdout.split("\n")[0], `ok  a-kernel  13.6 MB  ${"a".repeat(64)}`);
  assert.equal(stderr, "verify: a-kernel\n");
  assert.deepEqual(asked, ["verify undefined"]);
  assert.equal((await sbx(["images", "verify", "-q"], world)).stderr, "");
  assert.equal(JSON.parse((await sbx(["images", "verify", "--json"], world)).stdout).ok, true);
});

test("images that are missing or damaged are status 125", async () => {
  const damage = () => Promise.reject(new AssetError("Cannot use a-kernel: wrong", { hint: "Build it." }));
  const { world } = installed({ open: damage, verify: damage, fetch: damage, build: damage });
  for (const args of [["images", "list"], ["images", "verify"], ["images", "build"], ["prefetch"]]) {
    const { code, stdout, stderr } = await sbx(args, world);
    assert.deepEqual([code, stdout, stderr], [125, "", "sbx: Cannot use a-kernel: wrong\nBuild it.\n"], args.join(" "));
  }
  const { code, stdout, stderr } = await sbx(["images", "verify", "--json"], world);
  assert.deepEqual([code, stderr, JSON.parse(stdout).error.code], [125, "", "SBX_ASSET"]);
});

test("images remove says what was freed", async () => {
  assert.deepEqual(await sbx(["images", "remove"], installed().world).then(({ code, stderr }) => [code, stderr]), [
    0,
    "Removed /images: 13.6 MB.\n",
  ]);
  const none = installed({ remove: () => Promise.resolve(0) });
  assert.match((await sbx(["images", "remove"], none.world)).stderr, /There were no images in \/images/);
});

test("images build passes its options on, then bakes what was built", async () => {
  const { world, built, prepared } = installed();
  const { code, stderr } = await sbx([
    "images",
    "build",
    "-l",
    "py",
    "-l",
    "sh",
    "--source",
    "/src",
    "--python-catalog",
    "/names",
    "--force",
  ], world);
  assert.equal(code, 0);
  const { onProgress: _progress, onWarning: _warning, signal: _signal, ...given } = built[0] ?? {};
  assert.deepEqual(given, { languages: ["python", "raw"], sourceDir: "/src", pythonCatalog: "/names", isForced: true });
  assert.deepEqual(prepared, ["python", "raw", "closed"]);
  assert.equal(stderr, "sbx warning: old\uFFFD mirror\nThe images are ready in /images; building took 12.3 s.\n");
  await sbx(["images", "build"], world);
  assert.deepEqual([built[1]?.languages, built[1]?.sourceDir, built[1]?.isForced], [undefined, undefined, false]);
});

test("images needs one of its commands", async () => {
  for (const args of [["images"], ["images", "frobnicate"], ["images", "list", "x"]]) {
    const { code, stdout, stderr } = await sbx(args, installed().world);
    assert.deepEqual([code, stdout], [2, ""], args.join(" "));
    assert.match(stderr, /^sbx: .+\n/);
  }
  assert.match((await sbx(["images"])).stderr, /build, list, verify, remove/);
});

test("prefetch fetches, then bakes every language for this host", async () => {
  const { world, asked, prepared } = installed();
  const { code, stdout, stderr } = await sbx(["prefetch"], world);
  assert.deepEqual([code, stdout, stderr], [0, "", "download: a-kernel\n"]);
  assert.deepEqual([asked, prepared], [["fetch undefined"], ["python", "raw", "closed"]]);
  assert.equal((await sbx(["prefetch", "-q"], world)).stderr, "");
});

test("prefetch for another architecture bakes nothing, and refuses unknown ones", async () => {
  const other = process.arch === "x64" ? "aarch64" : "x86_64";
  const { world, asked, prepared } = installed();
  assert.equal((await sbx(["prefetch", "--arch", other], world)).code, 0);
  assert.deepEqual([asked, prepared], [[`fetch ${other}`], []]);
  const { code, stderr } = await sbx(["prefetch", "--arch", "riscv64"], world);
  assert.equal(code, 2);
  assert.match(stderr, /must be one of x86_64, aarch64, got "riscv64"/);
});

test("a terminal is left with no half line of progress", async () => {
  const stderr = new FakeOutput({ isTty: true });
  await sbx(["images", "verify"], { ...installed().world, stderr });
  assert.ok(stderr.text.endsWith("\r\x1b[K"));
});
