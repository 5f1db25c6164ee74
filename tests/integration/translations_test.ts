/** Saved translations: a clone takes them, never runs stale ones, and does without where they do not fit. Only our own emulator has them. */
import assert from "node:assert/strict";
import { copyFileSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import path from "node:path";
import test, { after, before, type TestContext } from "node:test";
import { resolveConfig } from "../../src/config/config.ts";
import { readPlatform } from "../../src/host/platform.ts";
import { defaultImagesDirectory, openAssets } from "../../src/images/assets.ts";
import type { Language } from "../../src/mod.ts";
import { findHypervisor } from "../../src/run/find_hypervisor.ts";
import { warmUpText } from "../../src/run/warm_up.ts";
import { type Hypervisor, isOwnEmulator, type TemplateFiles } from "../../src/vm/hypervisor.ts";
import { launch } from "../../src/vm/launch.ts";
import { type Template, templateIdentity, TemplateStore } from "../../src/vm/template.ts";
import type { Vm } from "../../src/vm/vm.ts";
import { temporaryDirectory } from "../support/leftovers.ts";
import { openTestScheduler, type TestScheduler } from "../support/vm.ts";

const MEMORY_MIB = 256;
const silent = { debug() {}, info() {}, warning() {}, error() {} };
let vms: TestScheduler, hypervisor: Hypervisor, templates: TemplateStore;
before(async () => {
  vms = await openTestScheduler();
  const config = resolveConfig(), platform = readPlatform();
  const assets = await openAssets(config.imagesDir ?? defaultImagesDirectory(config.cacheDir, platform.arch));
  hypervisor = await findHypervisor({ config, platform, assets, ownerToken: "00000000007e5747", log: silent });
  templates = new TemplateStore(config.snapshotCacheDir);
});
after(() => vms.close());

/** The template of `language`, or undefined where nothing is saved with it. */
async function templateOf(language: Language, t: TestContext): Promise<Template | undefined> {
  if (!isOwnEmulator(hypervisor)) {
    t.skip("this host does not run our own emulator");
    return undefined;
  }
  await vms.scheduler.prepare(language, { memoryMb: MEMORY_MIB });
  const template = await templates.find(templateIdentity(hypervisor, { language, memoryMiB: MEMORY_MIB, warmUp: warmUpText(language) }));
  assert.ok(template, "it is there");
  return template;
}

const clone = (template: Template, files: Partial<TemplateFiles> = {}): Promise<Vm> =>
  launch(hypervisor, {
    language: template.language,
    memoryMiB: MEMORY_MIB,
    origin: { kind: "clone", files: { ...template, ...files } },
  });

async function output(vm: Vm, code: string): Promise<string> {
  let text = "";
  const decoder = new TextDecoder();
  const onOutput = (_: string, bytes: Uint8Array) => void (text += decoder.decode(bytes, { stream: true }));
  const { exitCode } = await vm.guest.exec({ code, env: {}, timeoutMs: 120_000 }, { onOutput });
  assert.equal(exitCode, 0, text);
  return text;
}

/** Blocks that this machine has translated itself. */
async function translated(vm: Vm): Promise<number> {
  const answer = await vm.qmp.execute("x-query-jit") as { "human-readable-text": string };
  return Number(/^TB count\s+(\d+)/m.exec(answer["human-readable-text"])?.[1]);
}

const HELLO: Readonly<Record<Language, string>> = {
  python: "print('hello')",
  javascript: "console.log('hello')",
  raw: "echo hello",
};

for (const language of ["python", "javascript", "raw"] as const) {
  test(`${language}: a clone translates a fraction of what it would without, and shows the same`, async (t) => {
    const template = await templateOf(language, t);
    if (!template) return;
    const none = path.join(temporaryDirectory(t), "none");
    writeFileSync(none, "");
    await using with_ = await clone(template);
    await using without = await clone(template, { translationsFile: none });
    assert.deepEqual([await output(with_, HELLO[language]), await output(without, HELLO[language])], ["hello\n", "hello\n"]);
    const own = await translated(with_), all = await translated(without);
    assert.ok(own < all / 4, `${own} of ${all} blocks`);
  });
}

test("translations that are torn, foreign or garbage are left alone", async (t) => {
  const template = await templateOf("raw", t);
  if (!template) return;
  const file = path.join(temporaryDirectory(t), "translations");
  const wholeBytes = statSync(template.translationsFile).size;
  const damages: ReadonlyArray<readonly [string, () => void]> = [
    ["a byte short", () => truncateSync(file, wholeBytes - 1)],
    ["a header alone", () => truncateSync(file, 80)],
    ["half a header", () => truncateSync(file, 40)],
    ["another program's", () => patch(file, 8)],
    ["for another distance", () => patch(file, 16)],
    ["another index size", () => patch(file, 48)],
    ["more blocks than fit", () => patch(file, 59)],
    ["pages that are none", () => patch(file, 72)],
    ["garbage", () => writeFileSync(file, new Uint8Array(wholeBytes).fill(0xa5))],
  ];
  for (const [name, damage] of damages) {
    copyFileSync(template.translationsFile, file);
    damage();
    await using vm = await clone(template, { translationsFile: file });
    assert.equal(await output(vm, "echo $((6 * 7))"), "42\n", name);
    assert.ok(await translated(vm) > 2000, `${name}: it translates for itself`);
  }
});

test("translations of another bake are left alone", async (t) => {
  const template = await templateOf("raw", t);
  if (!template) return;
  await using vm = await clone(template, { bakeId: "00000000-0000-0000-0000-000000000000" });
  assert.equal(await output(vm, "echo on"), "on\n");
  assert.ok(await translated(vm) > 2000);
});

function patch(file: string, at: number): void {
  const bytes = readFileSync(file);
  bytes[at] = ((bytes[at] ?? 0) + 1) & 255;
  writeFileSync(file, bytes);
}

test("code that rewrites itself in a clone runs as written last", async (t) => {
  const template = await templateOf("python", t);
  if (!template) return;
  await using vm = await clone(template);
  const code = `
import ctypes, mmap
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
seen = []
for value in range(200):
    page[:6] = b"\\xb8" + value.to_bytes(4, "little") + b"\\xc3"
    seen.append(call())
print(seen == list(range(200)))`;
  assert.equal(await output(vm, code), "True\n");
});

test("pages of code that are reused for other code run the new one", async (t) => {
  const template = await templateOf("raw", t);
  if (!template) return;
  await using vm = await clone(template);
  // The files of saved code are dropped from memory, other programs take their pages, and then all come back, several times.
  const code = `
for round in 1 2 3; do
  for size in 60 90 60; do head -c \${size}M /dev/zero > /dev/shm/fill 2>/dev/null; head -c \${size}M /dev/zero > fill 2>/dev/null; done
  rm -f /dev/shm/fill fill
  for program in git curl jq file tar xz unzip awk sed grep sort find; do
    command -v $program > /dev/null && { $program --version || $program -v || $program -h; } > /tmp/out.$program 2>&1
  done
  jq -n '[range(50)] | add' && seq 1000 | sort -rn | head -n 1 && git --version | cut -d ' ' -f 1,2 && echo abc | sha256sum | cut -c 1-8
done`;
  const expected = "1225\n1000\ngit version\nedeaaff3\n";
  assert.equal(await output(vm, code), expected.repeat(3));
});
