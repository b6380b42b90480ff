import com.datadoghq.sketch.ddsketch.DDSketch;
import com.datadoghq.sketch.ddsketch.DDSketches;
import com.datadoghq.sketch.ddsketch.encoding.ByteArrayInput;
import com.datadoghq.sketch.ddsketch.encoding.GrowingByteArrayOutput;
import com.datadoghq.sketch.ddsketch.store.UnboundedSizeDenseStore;
import com.fasterxml.jackson.core.JsonProcessingException;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.io.UncheckedIOException;

/** One series in one window so far. Its bytes: the errors, then the sketch. */
public class Stats {
  static final int WINDOW_S = 10;
  static final int LATENESS_S = 5;
  private static final double RELATIVE_ACCURACY = 0.01;
  private static final ObjectMapper JSON = new ObjectMapper();

  private final DDSketch durations;
  private long errors;

  public Stats() {
    this(0, DDSketches.unboundedDense(RELATIVE_ACCURACY));
  }

  private Stats(long errors, DDSketch durations) {
    this.errors = errors;
    this.durations = durations;
  }

  Stats add(Event event) {
    durations.accept(event.duration_s);
    if (event.status.equals("error")) errors++;
    return this;
  }

  Stats merge(Stats other) {
    durations.mergeWith(other.durations);
    errors += other.errors;
    return this;
  }

  record Row(
      String model, String endpoint, double start_unix_s, long count, long error_count,
      double error_rate, double throughput_per_s, double p50, double p90, double p99) {}

  byte[] row(String series, long startMillis) {
    String[] names = series.split(" ");
    long count = (long) durations.getCount();
    double[] q = durations.getValuesAtQuantiles(new double[] {0.5, 0.9, 0.99});
    Row row = new Row(
        names[0], names[1], startMillis / 1000.0, count, errors,
        (double) errors / count, (double) count / WINDOW_S, q[0], q[1], q[2]);
    try {
      return JSON.writeValueAsBytes(row);
    } catch (JsonProcessingException e) {
      throw new UncheckedIOException(e);
    }
  }

  byte[] toBytes() {
    GrowingByteArrayOutput out = GrowingByteArrayOutput.withDefaultInitialCapacity();
    try {
      out.writeLongLE(errors);
      durations.encode(out, false);
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
    return out.trimmedCopy();
  }

  static Stats fromBytes(byte[] bytes) {
    try {
      ByteArrayInput in = ByteArrayInput.wrap(bytes);
      return new Stats(in.readLongLE(), DDSketch.decode(in, UnboundedSizeDenseStore::new));
    } catch (IOException e) {
      throw new UncheckedIOException(e);
    }
  }
}
