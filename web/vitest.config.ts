import { defineConfig } from "vitest/config";

const chromium = {
  globalSetup: "tests/browser/build.ts",
  fileParallelism: false,
  testTimeout: 1_200_000,
  hookTimeout: 600_000,
};
const coverage = "tests/browser/coverage.test.ts";

// `unit` needs Node alone; `browser` drives Chromium, where software graphics take their time; `coverage` does so with
// the cases of the folder that COVERAGE names.
export default defineConfig({
  test: {
    projects: [
      { test: { name: "unit", include: ["tests/*.test.ts"] } },
      { test: { name: "browser", include: ["tests/browser/*.test.ts"], exclude: [coverage], ...chromium } },
      { test: { name: "coverage", include: [coverage], ...chromium } },
    ],
  },
});
