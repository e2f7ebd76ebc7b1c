#!/usr/bin/env bash
# org.apache.hadoop:hadoop-client-minicluster 3.5.0: the mini cluster does not start from its own dependencies; it needs JUnit 5.
#
# The artefact is there for tests of applications downstream, shaded so that it brings nothing of Hadoop's own tests into sight. Its base
# folder comes from GenericTestUtils.getTestDir, which calls org.junit.jupiter.api.Assertions, and neither the jar nor the POM has that
# class: NoClassDefFoundError before the name node is made. Who runs it inside JUnit 5 never notices; from a main class, with JUnit 4 or
# TestNG it ends at once. Put org.junit.jupiter:junit-jupiter-api beside it.
#
# Needs Java 17 and Maven. Prints what it saw, and fails when that changes.
set -euo pipefail
folder=$(mktemp -d)
cluster=
trap '[ -z "$cluster" ] || kill "$cluster" 2>/dev/null || true; rm -rf "$folder"' EXIT
cd "$folder"
dependency() { echo "<dependency><groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version></dependency>"; }
jars() { # FOLDER DEPENDENCIES
  local ours="<modelVersion>4.0.0</modelVersion><groupId>x</groupId><artifactId>x</artifactId><version>1</version>"
  echo "<project>$ours<dependencies>$2</dependencies></project>" > pom.xml
  mvn -q -B dependency:copy-dependencies -DoutputDirectory="$1" -DincludeScope=runtime
}
jars alone "$(dependency org.apache.hadoop hadoop-client-minicluster 3.5.0)"
jars junit "$(dependency org.junit.jupiter junit-jupiter-api 5.10.2)"
start="org.apache.hadoop.test.MiniDFSClusterManager -datanodes 1 -format -writeDetails"

java -cp "alone/*" $start alone.json > alone.log 2>&1 || true
said=$(grep -o 'NoClassDefFoundError: .*' alone.log | head -1)
java -cp "alone/*:junit/*" $start with.json > with.log 2>&1 &
cluster=$!
for _ in $(seq 120); do [ -s with.json ] && break; sleep 1; done
echo "hadoop-client-minicluster 3.5.0 with all of its dependencies: $said"
echo "with junit-jupiter-api 5.10.2 beside it: $(cat with.json 2>/dev/null || echo "did not start")"
[ "$said" = "NoClassDefFoundError: org/junit/jupiter/api/Assertions" ] && grep -q namenode_port with.json || { echo "this has changed" >&2; exit 1; }
