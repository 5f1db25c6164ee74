/** Templates: what is whole is found, what is not is made anew; one process bakes, the others wait; failures leave nothing. */
import assert from "node:assert/strict";
import {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import test, { type TestContext } from "node:test";
import type { Hypervisor, TemplateFiles } from "../../../src/vm/hypervisor.ts";
import { type Template, type TemplateIdentity, templateIdentity, TemplateStore } from "../../../src/vm/template.ts";
import { noLeftovers, temporaryDirectory } from "../../support/leftovers.ts";
import { startScript } from "../../support/subprocess.ts";
import { eventually } from "../../support/waiting.ts";

const KEY = "a1".repeat(32);
const IDENTITY: TemplateIdentity = { language: "raw", memoryMiB: 1, key: KEY };
const MIB = 1_048_576;

/** A bake that succeeds at once. */
const bake = ({ ramFile, stateFile, translationsFile }: TemplateFiles) => {
  writeFileSync(ramFile, "ram", { flag: "r+" });
  writeFileSync(stateFile, "state");
  writeFileSync(translationsFile, "translations");
  return Promise.resolve("boot log");
};
const neverBake = () => assert.fail("it is there already");

async function baked(t: TestContext): Promise<{ root: string; store: TemplateStore; template: Template }> {
  const root = path.join(temporaryDirectory(t), "snapshots"), store = new TemplateStore(root);
  return { root, store, template: await store.findOrBake(IDENTITY, bake) };
}

test("TemplateStore bakes what is not there, and finds it from then on", async (t) => {
  const { root, store, template } = await baked(t);
  assert.deepEqual(await store.find(IDENTITY), template);
  assert.deepEqual(await new TemplateStore(root).findOrBake(IDENTITY, neverBake), template);
  assert.deepEqual(await store.find(template), template, "a template is an identity");
  assert.equal(await store.bootLog(template), "boot log");
  assert.equal(statSync(template.ramFile).size, MIB);
  assert.equal(readFileSync(template.stateFile, "utf8"), "state");
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)], "neither lock nor temporary is left");
});

test("TemplateStore: a saved template is for this user alone and read-only", async (t) => {
  const { root, template } = await baked(t);
  assert.deepEqual([root, template.directory].map((directory) => statSync(directory).mode & 0o777), [0o700, 0o700]);
  for (const name of readdirSync(template.directory)) {
    assert.equal(statSync(path.join(template.directory, name)).mode & 0o222, 0, name);
  }
});

test("TemplateStore removes what was not used for longest when there is too much, and nothing else", async (t) => {
  const root = path.join(temporaryDirectory(t), "snapshots"), store = new TemplateStore(root, 30_000);
  const [old, used, fresh] = ["c", "d", "e"].map((digit) => ({ ...IDENTITY, key: digit.repeat(64) }));
  assert.ok(old && used && fresh);
  const first = await store.findOrBake(old, bake), second = await store.findOrBake(used, bake);
  for (const [template, seconds] of [[first, 2000], [second, 1000]] as const) {
    utimesSync(path.join(template.directory, "meta.json"), seconds, seconds);
  }
  writeFileSync(path.join(root, "somebody-else"), "x".repeat(100_000));
  await store.find(old);
  await eventually("the use is noted", () => statSync(path.join(first.directory, "meta.json")).mtimeMs > 1e9);
  await store.findOrBake(fresh, bake);
  assert.deepEqual([await store.find(used), existsSync(second.directory)], [undefined, false]);
  assert.ok(await store.find(old) && await store.find(fresh) && existsSync(path.join(root, "somebody-else")));
});

test("TemplateStore keeps the template it has just made, however large", async (t) => {
  const store = new TemplateStore(path.join(temporaryDirectory(t), "snapshots"), 1);
  await store.findOrBake(IDENTITY, bake);
  assert.ok(await store.find(IDENTITY));
});

test("TemplateStore gives the bake a memory file of the whole size that takes no room", async (t) => {
  const store = new TemplateStore(temporaryDirectory(t));
  await store.findOrBake({ ...IDENTITY, memoryMiB: 4096 }, (files) => {
    const { size, blocks } = statSync(files.ramFile);
    assert.deepEqual([size, blocks, statSync(files.stateFile).size], [4096 * MIB, 0, 0]);
    return bake(files);
  });
});

test("TemplateStore.find: nothing where nothing is", async (t) => {
  const { store } = await baked(t);
  assert.equal(await new TemplateStore(path.join(temporaryDirectory(t), "missing")).find(IDENTITY), undefined);
  for (const other of [{ key: "b2".repeat(32) }, { language: "python" }, { memoryMiB: 2 }]) {
    assert.equal(await store.find({ ...IDENTITY, ...other }), undefined);
  }
});

const DAMAGES: ReadonlyArray<readonly [string, (template: Template, meta: string) => void]> = [
  ["truncated memory", ({ ramFile }) => truncateSync(ramFile, MIB - 1)],
  ["memory that is too long", ({ ramFile }) => truncateSync(ramFile, MIB + 1)],
  ["no memory", ({ ramFile }) => rmSync(ramFile)],
  ["truncated state", ({ stateFile }) => truncateSync(stateFile, 4)],
  ["empty state", ({ stateFile }) => truncateSync(stateFile, 0)],
  ["no state", ({ stateFile }) => rmSync(stateFile)],
  ["truncated translations", ({ translationsFile }) => truncateSync(translationsFile, 4)],
  ["no translations", ({ translationsFile }) => rmSync(translationsFile)],
  ["no description", (_template, meta) => rmSync(meta)],
  ["half a description", (_template, meta) => truncateSync(meta, 20)],
  ["an empty description", (_template, meta) => truncateSync(meta, 0)],
  ["a description that is no object", (_template, meta) => writeFileSync(meta, "[]")],
  [
    "another template's description",
    (_template, meta) => writeFileSync(meta, readFileSync(meta, "utf8").replace(KEY, `${KEY.slice(0, 32)}${"f".repeat(32)}`)),
  ],
  [
    "sizes of the wrong type",
    (_template, meta) => writeFileSync(meta, JSON.stringify({ ...JSON.parse(readFileSync(meta, "utf8")), ramBytes: "1048576" })),
  ],
  ["nothing but an empty directory", ({ directory }) => {
    rmSync(directory, { recursive: true });
    mkdirSync(directory);
  }],
  ["a file in its place", ({ directory }) => {
    rmSync(directory, { recursive: true });
    writeFileSync(directory, "");
  }],
];
for (const [name, damage] of DAMAGES) {
  test(`TemplateStore refuses a template with ${name}, and makes it anew`, async (t) => {
    const { root, store, template } = await baked(t);
    const meta = path.join(template.directory, "meta.json");
    for (const file of [template.ramFile, template.stateFile, meta]) chmodSync(file, 0o600);
    damage(template, meta);
    assert.equal(await store.find(IDENTITY), undefined);
    const fresh = await store.findOrBake(IDENTITY, bake);
    assert.deepEqual(await store.find(IDENTITY), fresh);
    assert.notEqual(fresh.bakeId, template.bakeId);
    assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
  });
}

test("TemplateStore: a bake that fails leaves nothing, and the next may try", async (t) => {
  const root = temporaryDirectory(t), store = new TemplateStore(root), failure = new Error("no boot");
  const failing = [
    () => Promise.reject(failure),
    () => {
      throw failure;
    },
    (files: TemplateFiles) => bake(files).then(() => Promise.reject(failure)),
  ];
  for (const fail of failing) {
    await assert.rejects(store.findOrBake(IDENTITY, fail), (error) => error === failure);
    assert.deepEqual(readdirSync(root), []);
  }
  await assert.rejects(store.findOrBake(IDENTITY, () => Promise.resolve("nothing saved")), /state is empty/);
  await assert.rejects(
    store.findOrBake(IDENTITY, ({ ramFile }) => {
      rmSync(path.dirname(ramFile), { recursive: true });
      return Promise.resolve("log");
    }),
    { code: "ENOENT" },
  );
  assert.deepEqual(readdirSync(root), []);
  await store.findOrBake(IDENTITY, bake);
});

test("TemplateStore: an abort while another bakes gives the reason, and bakes nothing", async (t) => {
  const root = temporaryDirectory(t);
  const baker = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await baker.said("baking");
  const controller = new AbortController(), reason = new Error("enough");
  const waiting = new TemplateStore(root).findOrBake(IDENTITY, neverBake, {
    signal: controller.signal,
    onWait: () => controller.abort(reason),
  });
  await assert.rejects(waiting, (error) => error === reason);
  baker.tell("go");
  assert.match((await baker.ended).stdout, /\ntemplate /);
});

test("TemplateStore: of two processes one bakes, the other waits and gets the same", async (t) => {
  const root = temporaryDirectory(t);
  const first = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await first.said("baking");
  const second = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await second.said(`waiting for ${first.pid}`);
  first.tell("go");
  const ends = await Promise.all([first.ended, second.ended]);
  const template = await new TemplateStore(root).find(IDENTITY);
  assert.ok(template);
  assert.deepEqual(ends.map(({ stdout }) => stdout), [
    `baking\ntemplate ${template.bakeId}\n`,
    `waiting for ${first.pid}\ntemplate ${template.bakeId}\n`,
  ]);
  assert.match(readFileSync(template.ramFile, "latin1"), new RegExp(`^baked by ${first.pid}\0`));
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
});

test("TemplateStore: many processes that start at once bake once", async (t) => {
  const root = path.join(temporaryDirectory(t), "new");
  const ends = await Promise.all(Array.from({ length: 5 }, () => startScript(t, "bake.ts", [root, KEY]).ended));
  const said = ends.map(({ stdout }) => stdout);
  assert.equal(said.filter((text) => text.includes("baking")).length, 1, said.join());
  const template = await new TemplateStore(root).find(IDENTITY);
  assert.ok(template && said.every((text) => text.endsWith(`template ${template.bakeId}\n`)), said.join());
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
});

test("TemplateStore: different keys are baked side by side", async (t) => {
  const root = temporaryDirectory(t);
  const slow = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await slow.said("baking");
  const other = await new TemplateStore(root).findOrBake({ ...IDENTITY, key: "c3".repeat(32) }, bake);
  assert.ok(existsSync(other.ramFile));
  slow.tell("go");
  assert.match((await slow.ended).stdout, /\ntemplate /);
  assert.equal(readdirSync(root).length, 2);
});

test("TemplateStore: when the bake of another fails, who waited bakes", async (t) => {
  const root = temporaryDirectory(t);
  const failing = startScript(t, "bake.ts", [root, KEY, "fail"]);
  const template = await new TemplateStore(root).findOrBake(IDENTITY, bake);
  assert.ok(template.bakeId);
  assert.match((await failing.ended).stdout, /failed: the bake failed\n$|^template /);
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
});

test("TemplateStore: a baker that is killed leaves temporaries only, and the next bake sweeps them", async (t) => {
  const root = temporaryDirectory(t);
  const killed = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await killed.said("baking");
  let hasWaited = false;
  const waiting = new TemplateStore(root).findOrBake(IDENTITY, bake, { onWait: () => hasWaited = true });
  await eventually("it waits", () => hasWaited);
  killed.raw.kill("SIGKILL");
  await killed.ended;
  const template = await waiting;
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
});

test("TemplateStore.sweep removes what a killed baker left, its lock too, and nothing of a living one", async (t) => {
  const root = temporaryDirectory(t), store = new TemplateStore(root);
  await store.sweep();
  const template = await store.findOrBake({ ...IDENTITY, key: "b".repeat(64) }, bake);
  const killed = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await killed.said("baking");
  const before = readdirSync(root).sort();
  assert.equal(before.length, 3, before.join());
  await Promise.all([store.sweep(), store.sweep()]);
  assert.deepEqual(readdirSync(root).sort(), before);
  killed.raw.kill("SIGKILL");
  await killed.ended;
  await Promise.all([store.sweep(), store.sweep()]);
  assert.deepEqual(readdirSync(root), [path.basename(template.directory)]);
});

test("TemplateStore: what a killed baker left is no template", async (t) => {
  const root = temporaryDirectory(t);
  const killed = startScript(t, "bake.ts", [root, KEY, "wait"]);
  await killed.said("baking");
  killed.raw.kill("SIGKILL");
  await killed.ended;
  assert.ok(readdirSync(root).every((name) => name.startsWith(".")), readdirSync(root).join());
  assert.equal(await new TemplateStore(root).find(IDENTITY), undefined);
});

test("TemplateStore.drop removes a template, also twice, but not the one that replaced it", async (t) => {
  const { root, store, template } = await baked(t);
  await store.drop(template);
  assert.deepEqual([await store.find(IDENTITY), readdirSync(root)], [undefined, []]);
  await store.drop(template);
  const fresh = await store.findOrBake(IDENTITY, bake);
  await store.drop(template);
  assert.deepEqual(await store.find(IDENTITY), fresh);
  rmSync(path.join(fresh.directory, "meta.json"));
  await store.drop(fresh);
  assert.deepEqual(readdirSync(root), []);
});

test("TemplateStore.bootLog of a template that has gone is empty", async (t) => {
  const { store, template } = await baked(t);
  await store.drop(template);
  assert.equal(await store.bootLog(template), "");
});

/** What a launch would use; only what decides a template's content matters here. */
function hypervisor(
  changes: {
    kernel?: string;
    initrd?: string;
    firmware?: string;
    root?: string;
    version?: string;
    accelerator?: "tcg" | "kvm";
    cpu?: string;
  } = {},
): Hypervisor {
  const file = (name: string, sha256: string | undefined) => ({ path: `/images/${name}`, sha256: sha256 ?? name });
  return {
    platform: { os: "linux", arch: "x86_64", kernelRelease: "6", bootId: "b", isRoot: false, cpus: 1, memoryBytes: 1 },
    files: {
      kernel: file("kernel", changes.kernel),
      initrd: file("initrd", changes.initrd),
      firmware: file("firmware", changes.firmware),
      rootImage: (language: string) => file(`${language}.erofs`, changes.root),
    },
    qemu: { path: "/images/qemu-sbx", version: changes.version ?? "10.0.13", isOwn: true },
    candidate: { accelerator: changes.accelerator ?? "tcg", cpu: changes.cpu ?? "max" },
    ownerToken: "t",
  } as unknown as Hypervisor;
}

test("templateIdentity: the same inputs give the same key, whatever does not reach the machine", () => {
  const request = { language: "python", memoryMiB: 256, warmUp: "pass" };
  const key = templateIdentity(hypervisor(), request).key;
  assert.match(key, /^[0-9a-f]{64}$/);
  assert.equal(templateIdentity({ ...hypervisor(), ownerToken: "other" }, request).key, key);
  assert.deepEqual(templateIdentity(hypervisor(), request), { language: "python", memoryMiB: 256, key });
  const keyOf = (path: string) => templateIdentity(hypervisor(), { ...request, layer: { path, sha256: "1" } }).key;
  assert.equal(keyOf("/a"), keyOf("/b"), "a layer is its content");
});

test("templateIdentity: every input that reaches the machine changes the key", () => {
  const request = { language: "python", memoryMiB: 256, warmUp: "pass" };
  const changes = [{ kernel: "x" }, { initrd: "x" }, { firmware: "x" }, { root: "x" }, { version: "10.0.14" }, { accelerator: "kvm" }, {
    cpu: "host",
  }] as const;
  const keys = [
    ...changes.map((change) => templateIdentity(hypervisor(change), request).key),
    ...[{ language: "raw" }, { memoryMiB: 257 }, { warmUp: "1" }, { layer: { path: "/a", sha256: "1" } }, {
      layer: { path: "/a", sha256: "2" },
    }, {}].map((change) => templateIdentity(hypervisor(), { ...request, ...change }).key),
  ];
  assert.equal(new Set(keys).size, keys.length);
});

noLeftovers();
