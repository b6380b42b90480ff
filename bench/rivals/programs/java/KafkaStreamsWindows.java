import java.time.Duration;
import java.util.Properties;
import org.apache.kafka.common.serialization.Serde;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.KeyValue;
import org.apache.kafka.streams.StreamsBuilder;
import org.apache.kafka.streams.StreamsConfig;
import org.apache.kafka.streams.kstream.Consumed;
import org.apache.kafka.streams.kstream.Suppressed;
import org.apache.kafka.streams.kstream.Suppressed.BufferConfig;
import org.apache.kafka.streams.kstream.Grouped;
import org.apache.kafka.streams.kstream.Materialized;
import org.apache.kafka.streams.kstream.Produced;
import org.apache.kafka.streams.kstream.TimeWindows;
import org.apache.kafka.streams.state.Stores;

/**
 * Kafka Streams' own DSL: BOOTSTRAP SOURCE TARGET STATE_DIR GUARANTEE.
 *
 * <p>The records are keyed by series already: no repartitioning. The store is in memory, with its cache: that is
 * faster here than RocksDB. The windows are held back by suppress(): EmitStrategy.onWindowClose() looks once a second,
 * and only when a record comes, so that the last windows of a log would wait for ever.
 */
public class KafkaStreamsWindows {
  private static final Serde<Event> EVENTS =
      Serdes.serdeFrom(
          (topic, event) -> { throw new UnsupportedOperationException("events are only read"); },
          (topic, json) -> Event.read(json));
  private static final Serde<Stats> STATS =
      Serdes.serdeFrom(
          (topic, stats) -> stats == null ? null : stats.toBytes(),
          (topic, bytes) -> bytes == null ? null : Stats.fromBytes(bytes));

  public static void main(String[] args) {
    Properties properties = new Properties();
    properties.put(StreamsConfig.APPLICATION_ID_CONFIG, "kafka-streams");
    properties.put(StreamsConfig.BOOTSTRAP_SERVERS_CONFIG, args[0]);
    properties.put(StreamsConfig.STATE_DIR_CONFIG, args[3]);
    properties.put(StreamsConfig.PROCESSING_GUARANTEE_CONFIG, args[4]);

    Duration size = Duration.ofSeconds(Stats.WINDOW_S);
    Duration lateness = Duration.ofSeconds(Stats.LATENESS_S);
    StreamsBuilder builder = new StreamsBuilder();
    builder
        .stream(args[1], Consumed.with(Serdes.String(), EVENTS)
            .withTimestampExtractor((record, partitionTime) -> ((Event) record.value()).timeMillis()))
        .groupByKey(Grouped.with(Serdes.String(), EVENTS))
        .windowedBy(TimeWindows.ofSizeAndGrace(size, lateness))
        .aggregate(Stats::new, (series, event, stats) -> stats.add(event),
            Materialized.<String, Stats>as(Stores.inMemoryWindowStore("windows", size.plus(lateness), size, false))
                .withKeySerde(Serdes.String()).withValueSerde(STATS).withCachingEnabled())
        .suppress(Suppressed.untilWindowCloses(BufferConfig.unbounded()))
        .toStream()
        .map((window, stats) -> KeyValue.pair(window.key(), stats.row(window.key(), window.window().start())))
        .to(args[2], Produced.with(Serdes.String(), Serdes.ByteArray()));
    new KafkaStreams(builder.build(), properties).start();
  }
}
