/** A package index on loopback: source packages made by the test, and the faults of a registry. */
import { execFileSync } from "node:child_process";
import { createHash } from "node:crypto";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import http from "node:http";
import type { AddressInfo } from "node:net";
import path from "node:path";
import type { TestContext } from "node:test";
import { temporaryDirectory } from "./leftovers.ts";

/** The index's name, for allowlists and environments. */
export const INDEX_NAME = "index.packages.example.com";

/** What an answer of the index does instead of what it should; undefined: nothing. */
export type IndexFault = (request: http.IncomingMessage, response: http.ServerResponse) => boolean;

/** An index that runs until the test ends. */
export interface PackageIndex {
  /** For `UV_DEFAULT_INDEX`. */
  readonly url: string;
  /** For `networkHosts`. */
  readonly hosts: Readonly<Record<string, string>>;
  /** Paths that were asked for. */
  readonly requests: string[];
  /** Looks at each request first. */
  fault: IndexFault | undefined;
}

/** What a package of the index does. */
export interface SourcePackage {
  readonly name: string;
  readonly version?: string;
  /** Its one module. */
  readonly module?: string;
  /** Python of its build, run in the workshop. */
  readonly build?: string;
}

/** Starts an index of `packages`, none of which has a wheel or needs another package. */
export async function startPackageIndex(t: TestContext, packages: readonly SourcePackage[]): Promise<PackageIndex> {
  const directory = temporaryDirectory(t), archives = new Map(packages.map((each) => makeSource(directory, each)));
  const index: { -readonly [K in keyof PackageIndex]: PackageIndex[K] } = { url: "", hosts: {}, requests: [], fault: undefined };
  const server = http.createServer((request, response) => {
    const target = request.url ?? "";
    index.requests.push(target);
    if (index.fault?.(request, response)) return;
    const name = /^\/simple\/([^/]+)\/$/.exec(target)?.[1], archive = archives.get(target.slice("/files/".length));
    const own = [...archives].filter(([file]) => name !== undefined && file.startsWith(`${name}-`));
    if (own.length > 0) {
      response.setHeader("content-type", "text/html");
      response.end(own.map(([file, { sha256 }]) => `<a href="/files/${file}#sha256=${sha256}">${file}</a>`).join("\n"));
    } else if (archive) response.end(archive.bytes);
    else {
      response.statusCode = 404;
      response.end("not here");
    }
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  t.after(() => new Promise<void>((resolve) => (server.closeAllConnections(), server.close(() => resolve()))));
  const { port } = server.address() as AddressInfo;
  index.url = `http://${INDEX_NAME}:${port}/simple`;
  index.hosts = { [`${INDEX_NAME}:${port}`]: `127.0.0.1:${port}` };
  return index;
}

function makeSource(
  directory: string,
  { name, version = "1.0", module = "value = 42\n", build = "" }: SourcePackage,
): [string, { readonly bytes: Uint8Array; readonly sha256: string }] {
  const stem = `${name}-${version}`,
    root = path.join(directory, stem),
    metadata = `Metadata-Version: 2.2\nName: ${name}\nVersion: ${version}\n`;
  mkdirSync(root);
  writeFileSync(path.join(root, "PKG-INFO"), metadata);
  writeFileSync(path.join(root, "pyproject.toml"), '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n');
  writeFileSync(path.join(root, "backend.py"), backend({ name, version, module, metadata, build }));
  execFileSync("tar", ["-C", directory, "-czf", path.join(directory, `${stem}.tar.gz`), stem]);
  const bytes = readFileSync(path.join(directory, `${stem}.tar.gz`));
  return [`${stem}.tar.gz`, { bytes, sha256: createHash("sha256").update(bytes).digest("hex") }];
}

/** A build backend (PEP 517) that needs nothing. */
function backend(
  of: { readonly name: string; readonly version: string; readonly module: string; readonly metadata: string; readonly build: string },
) {
  return `
import os, zipfile
FACTS = ${JSON.stringify(of)}
INFO = "{name}-{version}.dist-info".format(**FACTS)
def build_wheel(directory, settings=None, metadata=None):
    exec(FACTS["build"], {})
    name = "{name}-{version}-py3-none-any.whl".format(**FACTS)
    with zipfile.ZipFile(os.path.join(directory, name), "w") as wheel:
        wheel.writestr(FACTS["name"] + ".py", FACTS["module"])
        wheel.writestr(INFO + "/METADATA", FACTS["metadata"])
        wheel.writestr(INFO + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(INFO + "/RECORD", "")
    return name
`;
}
