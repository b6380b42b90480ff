import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.Comparator;
import java.util.Optional;
import org.apache.flink.api.common.eventtime.WatermarkStrategy;
import org.apache.flink.api.common.functions.AggregateFunction;
import org.apache.flink.api.common.serialization.DeserializationSchema;
import org.apache.flink.api.common.serialization.SerializationSchema;
import org.apache.flink.api.common.typeinfo.TypeInformation;
import org.apache.flink.configuration.Configuration;
import org.apache.flink.connector.base.DeliveryGuarantee;
import org.apache.flink.connector.kafka.sink.KafkaRecordSerializationSchema;
import org.apache.flink.connector.kafka.sink.KafkaSink;
import org.apache.flink.connector.kafka.source.KafkaSource;
import org.apache.flink.connector.kafka.source.enumerator.initializer.OffsetsInitializer;
import org.apache.flink.streaming.api.environment.StreamExecutionEnvironment;
import org.apache.flink.streaming.api.functions.windowing.ProcessWindowFunction;
import org.apache.flink.streaming.api.windowing.assigners.TumblingEventTimeWindows;
import org.apache.flink.streaming.api.windowing.windows.TimeWindow;
import org.apache.flink.util.Collector;

/**
 * Flink in one process: BOOTSTRAP SOURCE TARGET CHECKPOINTS GUARANTEE.
 *
 * <p>With the guarantee "none" there are no checkpoints, as by default; with "exactly-once" one a second, and a start
 * takes up the newest.
 */
public class FlinkWindows {
  public static void main(String[] args) throws Exception {
    boolean exactlyOnce = args[4].equals("exactly-once");
    Configuration configuration = exactlyOnce ? checkpoints(Path.of(args[3])) : new Configuration();
    StreamExecutionEnvironment env = StreamExecutionEnvironment.getExecutionEnvironment(configuration);
    env.getConfig().enableObjectReuse();

    KafkaSource<Event> source = KafkaSource.<Event>builder()
        .setBootstrapServers(args[0])
        .setTopics(args[1])
        .setGroupId("flink")
        .setStartingOffsets(OffsetsInitializer.earliest())
        .setValueOnlyDeserializer(new EventSchema())
        .build();
    KafkaSink<byte[]> sink = KafkaSink.<byte[]>builder()
        .setBootstrapServers(args[0])
        .setRecordSerializer(KafkaRecordSerializationSchema.<byte[]>builder()
            .setTopic(args[2])
            .setValueSerializationSchema(new RowBytes())
            .build())
        .setDeliveryGuarantee(exactlyOnce ? DeliveryGuarantee.EXACTLY_ONCE : DeliveryGuarantee.AT_LEAST_ONCE)
        .setTransactionalIdPrefix("flink")
        .setProperty("transaction.timeout.ms", "60000")
        .build();
    WatermarkStrategy<Event> watermarks =
        WatermarkStrategy.<Event>forBoundedOutOfOrderness(Duration.ofSeconds(Stats.LATENESS_S))
            .withTimestampAssigner((event, recordTime) -> event.timeMillis());

    env.fromSource(source, watermarks, "events")
        .keyBy(Event::series)
        .window(TumblingEventTimeWindows.of(Duration.ofSeconds(Stats.WINDOW_S)))
        .aggregate(new Aggregate(), new ToRow())
        .sinkTo(sink);
    env.execute("windows");
  }

  private static Configuration checkpoints(Path directory) throws IOException {
    Configuration configuration = new Configuration();
    configuration.setString("execution.checkpointing.interval", "1 s");
    configuration.setString("execution.checkpointing.mode", "EXACTLY_ONCE");
    configuration.setString("execution.checkpointing.dir", directory.toUri().toString());
    configuration.setString("execution.checkpointing.externalized-checkpoint-retention", "RETAIN_ON_CANCELLATION");
    newest(directory)
        .ifPresent(path -> configuration.setString("execution.state-recovery.path", path.toUri().toString()));
    return configuration;
  }

  private static Optional<Path> newest(Path directory) throws IOException {
    if (!Files.exists(directory)) return Optional.empty();
    try (var files = Files.walk(directory)) {
      return files.filter(file -> file.endsWith("_metadata"))
          .max(Comparator.comparingLong(file -> file.toFile().lastModified()))
          .map(Path::getParent);
    }
  }

  private static class EventSchema implements DeserializationSchema<Event> {
    public Event deserialize(byte[] json) {
      return Event.read(json);
    }

    public boolean isEndOfStream(Event event) {
      return false;
    }

    public TypeInformation<Event> getProducedType() {
      return TypeInformation.of(Event.class);
    }
  }

  private static class RowBytes implements SerializationSchema<byte[]> {
    public byte[] serialize(byte[] row) {
      return row;
    }
  }

  private static class Aggregate implements AggregateFunction<Event, Stats, Stats> {
    public Stats createAccumulator() {
      return new Stats();
    }

    public Stats add(Event event, Stats stats) {
      return stats.add(event);
    }

    public Stats getResult(Stats stats) {
      return stats;
    }

    public Stats merge(Stats one, Stats other) {
      return one.merge(other);
    }
  }

  private static class ToRow extends ProcessWindowFunction<Stats, byte[], String, TimeWindow> {
    public void process(String series, Context context, Iterable<Stats> stats, Collector<byte[]> out) {
      out.collect(stats.iterator().next().row(series, context.window().getStart()));
    }
  }
}
